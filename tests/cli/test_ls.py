"""qdit-ls: studies, runs, those without a record, and what is said where there are none."""

import os

import pytest
from helpers.commands import complaint
from helpers.fake_records import metric, record, write

from qdit.cli.ls import main


@pytest.fixture
def listed(runs, capsys):
    """What the command prints: lines of words, apart at two spaces or more."""
    started = runs / "s" / "vidit_q-w4a8-0a0a0a0a"
    (started / "samples").mkdir(parents=True)
    (started / "config.yaml").write_text("seed: 0\n")
    for path in (started, started / "samples", started / "config.yaml"):
        os.utime(path, (2e9, 2e9))  # the year 2033

    def words(*arguments):
        assert main(["--runs-dir", str(runs), *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [[word.strip() for word in line.split("  ") if word.strip()] for line in lines if line[:1] != "-"]

    return words


def test_a_study_is_a_line(listed, runs):
    write(runs, record("rtn", "w4a4", {}, study="older", finished="2026-11-20T10:00:00"))
    heads, mine, older = listed()
    assert heads == ["study", "runs", "status", "bits", "last", "folder"]
    assert mine[:4] == ["s", "8", "6 done, 1 failed, 1 unfinished", "w8a8, w4a8"]
    assert mine[4].startswith("2033-05-1")
    assert older[:3] == ["older", "1", "1 done"]


def test_the_runs_of_a_study_come_with_what_they_found_the_last_first(listed, runs):
    heads, first, *rest = listed("--study", "s")
    assert heads == ["run", "status", "bits", "main metric", "when", "folder"]
    assert first[:4] == ["vidit_q-w4a8-0a0a0a0a", "unfinished", "—", "—"]
    found = {line[0].rpartition("-")[0]: line[1:] for line in rest}
    assert found["q_dit-w4a8"][:3] == ["done", "w4a8", "sqnr 24.0 ± 0.4"]
    assert found["fp"][2] == "fid_lite0 60.00 ± 1.00"
    assert found["ptq4dit-w4a8"][0] == "failed: bits=1"
    assert (runs / "s" / rest[0][0]).is_dir()
    assert rest[0][-1] == str(runs / "s" / rest[0][0])


def test_a_study_of_another_qdit_does_not_hide_the_others(listed, runs, capsys):
    write(runs, record("rtn", "w4a4", {"sqnr": metric(1.0)}, study="alien", schema=99))
    assert main(["--runs-dir", str(runs)]) == 0
    printed = capsys.readouterr()
    assert "8 " in printed.out
    assert "has schema 99" in printed.err


def test_where_there_is_nothing_it_says_what_to_do(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["--runs-dir", str(tmp_path / "empty")]) == 0
    assert "make one with `qdit`" in capsys.readouterr().out
    assert "is no folder" in complaint(capsys, main, "--runs-dir", tmp_path / "lost")
    (runs / "methods").mkdir()
    assert "did you mean methods" in complaint(capsys, main, "--runs-dir", runs, "--study", "metods")


def test_a_study_as_a_shell_completes_it(listed):
    assert listed("--study", "s/") == listed("--study", "s")
