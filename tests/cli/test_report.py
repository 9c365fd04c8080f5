"""qdit-report: one file, and mistakes that are told in one message."""

import re

import pytest

from qdit.cli.report import main


def test_the_page_is_written(runs, tmp_path, capsys):
    output = tmp_path / "out.html"
    assert main(["s", "--runs-dir", str(runs), "--output", str(output)]) == 0
    assert "qdit quantizer=q_dit bits=w4a8 dataset.name=none" in output.read_text()
    assert str(output) in capsys.readouterr().err


def test_a_study_as_a_shell_completes_it(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["s/", "--runs-dir", str(runs)]) == 0
    assert (tmp_path / "s.html").is_file()


def test_runs_are_chosen(runs, tmp_path):
    output = tmp_path / "out.html"
    main(["s", "--runs-dir", str(runs), "--output", str(output), "--where", "bits=w8a8"])
    assert "w4a8" not in output.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["other"], "the studies of .* are s"),
        (["s", "--where", "bits=w1a1"], "leaves no run"),
        (["s", "--output", "."], "is a folder"),
    ],
)
def test_mistakes_are_one_message(words, said, runs, capsys):
    assert main([*words, "--runs-dir", str(runs)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("qdit-report: ")
    assert re.search(said, message)
