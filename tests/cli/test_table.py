"""The command: files and mistakes."""

import pytest

from qdit.cli.table import main


def test_command_writes_a_file(runs, tmp_path, capsys):
    out = tmp_path / "new" / "table.md"
    assert main(["--runs-dir", str(runs), "--study", "s", "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    assert out.read_text().startswith("| quantizer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study", "nope"], "studies of"),
        (["--study", "/nope"], "studies of"),
        (["--metrics", "sqrn"], "did you mean sqnr"),
        (["--where", "bits"], "write key=value"),
        (["--rows", "bits", "--cols", "bits"], "one key twice"),
        (["--expect", "missing.csv"], "cannot be read"),
        (["--format", "csv", "--metrics", "sqrn"], "did you mean sqnr"),
        (["--format", "csv", "--rows", "bits", "--cols", "bits"], "one key twice"),
        (["--format", "csv", "--rows", "bits", "bits"], "one key twice"),
        (["--write", "d.md", "--expect", "99999"], "does nothing beside --write"),
        (["--tolerance", "0.1"], "--tolerance does nothing without --expect"),
        (["--expect", "3", "--tolerance", "-1"], "--tolerance -1: a share of at least 0 is needed"),
        (["--expect", "3", "--tolerance", "nan"], "--tolerance nan: a share of at least 0 is needed"),
        (["--at", "w4a8"], "--at does nothing without --figures"),
        (["--figure-files", "svg"], "--figure-files does nothing without --figures"),
    ],
)
def test_mistakes_of_the_user_are_one_message_and_code_2(runs, capsys, arguments, message):
    assert main(["--runs-dir", str(runs), *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_a_marker_whose_quotes_do_not_close_is_told(tmp_path, capsys):
    document = tmp_path / "page.md"
    document.write_text('<!-- qdit-table: --study "s -->\n<!-- /qdit-table -->\n')
    assert main(["--write", str(document)]) == 2
    assert '--study "s -->: no closing quotation; the words are' in capsys.readouterr().err


def test_a_study_as_a_shell_completes_it(runs, capsys):
    assert main(["--runs-dir", str(runs), "--study", "s/"]) == 0
    assert "rtn" in capsys.readouterr().out
