"""How console commands end."""

import io
import subprocess
import sys

import pytest

from qdit.cli.entry import CLOSED, carried_out, study_name
from qdit.errors import UserError


def test_a_mistake_is_one_message_and_code_2(capsys):
    def refuse():
        raise UserError("this is wrong; try that")

    assert carried_out("qdit-this", refuse) == 2
    assert capsys.readouterr().err == "qdit-this: this is wrong; try that\n"
    assert [carried_out("qdit-this", lambda code=code: code) for code in (None, 0, 1)] == [0, 0, 1]


@pytest.mark.parametrize("module", ["qdit.cli.ls", "qdit.cli.main"])
def test_a_reader_that_goes_early_is_no_traceback(module, runs):
    words = ["--runs-dir", str(runs)] if module.endswith("ls") else ["--help"]
    with subprocess.Popen(
        [sys.executable, "-m", module, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait() == CLOSED


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_has_no_letter_for_is_a_question_mark(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert carried_out("qdit-this", lambda: print("rtn — σ")) == 0
    assert stream.buffer.getvalue() == b"rtn ? ?\n"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_study_may_be_named_as_a_shell_completes_it():
    assert [study_name(word) for word in ("mine", "mine/", "/")] == ["mine", "mine", "/"]
