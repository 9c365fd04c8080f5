"""What commands write into documents: between their own markers, and nothing else."""

import pytest
from helpers.fake_records import metric, record, write

from qdit.cli import table
from qdit.cli.documents import filled
from qdit.errors import UserError

TEXT = """Before.

<!-- one: a b -->
old
<!-- /one -->
<!-- two: c -->
<!-- /two -->

After.
"""


def test_a_part_is_written_again_and_the_rest_stays(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(TEXT)
    new = filled(path, "one", str.upper, "a b")
    assert new == TEXT.replace("old\n", "\nA B\n")
    path.write_text(new)
    assert filled(path, "one", str.upper, "a b") == new


def test_what_cannot_be_filled_is_said(tmp_path):
    path = tmp_path / "page.md"
    with pytest.raises(UserError, match=r"page\.md cannot be read"):
        filled(path, "one", str.upper, "a b")
    path.write_text("<!-- one: a -->\nwithout an end\n")
    with pytest.raises(UserError, match=r"has no lines <!-- one: a b --> and <!-- /one -->"):
        filled(path, "one", str.upper, "a b")


def test_tables_of_a_document_are_those_of_the_command(tmp_path, capsys):
    write(tmp_path / "runs", record("rtn", "w4a8", {"sqnr": metric(15.0, 0.2)}))
    words = ["--runs-dir", str(tmp_path / "runs"), "--study", "s", "--metrics", "sqnr"]
    path = tmp_path / "page.md"
    path.write_text(f"Results.\n\n<!-- qdit-table: {' '.join(words)} -->\n<!-- /qdit-table -->\n")
    assert table.main(["--write", str(path)]) == 0
    assert table.main(words) == 0
    assert capsys.readouterr().out in path.read_text()
    path.write_text("Nothing asked for.")
    assert table.main(["--write", str(path)]) == 2
    assert "has no lines <!-- qdit-table: --study methods -->" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--out f", "--expect 3", "--figures f", "--tolerance 0.1"])
def test_what_a_document_cannot_ask_for_is_said(word, tmp_path, capsys):
    path = tmp_path / "page.md"
    path.write_text(f"<!-- qdit-table: --study s {word} -->\n<!-- /qdit-table -->\n")
    assert table.main(["--write", str(path)]) == 2
    assert f"{word.split()[0]} does nothing in a document" in capsys.readouterr().err
