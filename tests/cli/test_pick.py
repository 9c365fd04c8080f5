"""qdit-pick: the smallest model, how sure that is, its command; one message where there is none."""

import shlex

import pytest
from helpers.commands import complaint
from helpers.fake_records import metric, record, write

from qdit.api.compose import composed
from qdit.cli.pick import main


def test_the_answer_has_the_numbers_the_command_and_the_front(runs, capsys):
    assert main(["--runs-dir", str(runs), "--study", "s", "--min", "sqnr=20", "--by", "bits"]) == 0
    first, certainty, command, folder, _, heads, _, *front = capsys.readouterr().out.splitlines()
    assert first == "q_dit w4a8: W bits (model) 4.50, SQNR (dB) ↑ 24.0 ± 0.4"
    assert certainty == "  sqnr ≥ 20: reached by 4.0, more than two standard errors"
    assert command.startswith("  qdit quantizer=q_dit bits=w4a8 ")
    assert folder.startswith(f"  {runs}/s/q_dit-w4a8-")
    assert "sqnr ≥ 20" in heads
    assert [line.split("|")[1].strip() for line in front] == ["q_dit w4a8", "q_dit w8a8"]


def test_where_there_is_no_command_it_says_why(tmp_path, capsys):
    write(tmp_path, record("mine", "w4a8", {"sqnr": metric(24.0, 0.4)}, config={"quantizer.paper": "one's own"}))
    assert main(["--runs-dir", str(tmp_path), "--min", "sqnr=20"]) == 0
    assert "\n  no command: recipe mine is in no file of conf/" in capsys.readouterr().out


def test_several_bars_and_what_is_not_certain(runs, capsys):
    words = ["--runs-dir", str(runs), "--min", "sqnr=20.5", "--max", "fid_lite0=62", "--by", "weight_bits_quantized"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("q_dit w8a8: ")
    assert "fid_lite0 ≤ 62: reached by 1.80, less than two standard errors" in out
    assert "no row of these reaches that by two standard errors" in out


def test_a_metric_without_a_direction_has_no_front(tmp_path, capsys):
    write(tmp_path, *(record("rtn", bits, {"motion_energy": metric(3.0, 0.1, None)}) for bits in ("w4a8", "w8a8")))
    assert main(["--runs-dir", str(tmp_path), "--min", "motion_energy=2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("rtn w4a8: ")
    assert out.endswith("no Pareto front of motion_energy: neither more nor less of it is better\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--min", "sqnr=nan"], "--min sqnr=nan: write METRIC=NUMBER"),
        (["--max", "fid_lite0=inf"], "--max fid_lite0=inf: write METRIC=NUMBER"),
        (["--min", "sqnr=60"], "none of the 5 quantized rows has sqnr ≥ 60; the best SQNR (dB) ↑ is 40.5 ± 0.4"),
        (["--max", "sqnr=20"], "write --min instead"),
        (["--min", "sqnr"], "write METRIC=NUMBER"),
        (["--min", "sqrn=20"], "did you mean sqnr"),
        ([], "no quality is asked for"),
        (["--min", "sqnr=20", "--by", "peak_memory_mb"], "none is the smallest by it"),
    ],
)
def test_mistakes_are_one_message(words, said, runs, capsys):
    assert said in complaint(capsys, main, "--runs-dir", runs, *words)


def test_the_command_finds_the_folders_that_were_named(tmp_path, capsys):
    """As printed it goes to the same study: in another folder of runs, with the run's own cache and weights."""
    cache, elsewhere = tmp_path / "a cache", tmp_path / "else where"
    cache.mkdir()
    own = {"cache_dir": str(cache), "eval.lpips_alex.weights": "/w/alex.pth", "inception_weights": "../inception.pth"}
    write(elsewhere, record("rtn", "w4a8", {"sqnr": metric(24.0, 0.4)}, config=own | {"study": "s", "runs_dir": "/no"}))
    assert main(["--runs-dir", str(elsewhere), "--min", "sqnr=20"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  qdit ")]
    made = composed(*shlex.split(line)[1:])
    assert (made.runs_dir, made.cache_dir, made.study) == (str(elsewhere), str(cache), "s")
    assert (made.inception_weights, made.eval.lpips_alex.weights) == ("../inception.pth", "/w/alex.pth")


def test_the_command_names_no_folder_that_is_the_default_or_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs", record("rtn", "w4a8", {"sqnr": metric(24.0)}, config={"cache_dir": "/of/another/machine"}))
    assert main(["--min", "sqnr=20"]) == 0
    assert "_dir=" not in capsys.readouterr().out
