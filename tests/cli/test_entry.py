"""How console commands end."""

from qdit.cli.entry import carried_out
from qdit.errors import UserError


def test_a_mistake_is_one_message_and_code_2(capsys):
    def refuse():
        raise UserError("this is wrong; try that")

    assert carried_out("qdit-this", refuse) == 2
    assert capsys.readouterr().err == "qdit-this: this is wrong; try that\n"
    assert [carried_out("qdit-this", lambda code=code: code) for code in (None, 0, 1)] == [0, 0, 1]
