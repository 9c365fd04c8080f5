"""What a table is expected to show, as the command checks it."""

import json

from qdit.cli.table import main


def test_expect_a_number_of_finished_runs(runs, capsys):
    assert main(["--runs-dir", str(runs), "--expect", "6"]) == 0
    assert main(["--runs-dir", str(runs), "--expect", "7"]) == 1
    assert "expected 7 finished runs, found 6" in capsys.readouterr().err


def test_expect_an_earlier_table(runs, tmp_path, capsys):
    old = tmp_path / "old.csv"
    base = ["--runs-dir", str(runs)]
    assert main([*base, "--format", "csv", "--out", str(old)]) == 0
    assert main([*base, "--expect", str(old)]) == 0
    [path] = runs.glob("s/rtn-w4a8-*/result.json")
    changed = json.loads(path.read_text())
    changed["metrics"]["sqnr"]["value"] = 22.0  # within 2·√(0.4² + 0.4²) = 1.13
    path.write_text(json.dumps(changed))
    assert main([*base, "--expect", str(old)]) == 0
    assert main([*base, "--expect", str(old), "--tolerance", "0.01"]) == 1
    assert "rtn w4a8: sqnr is 22, expected 21" in capsys.readouterr().err
    changed["metrics"]["sqnr"]["value"] = 23.0
    changed["metrics"]["fid_lite0"]["value"] = None
    changed["cost"]["model_bytes"] += 1000
    path.write_text(json.dumps(changed))
    assert main([*base, "--expect", str(old)]) == 1
    errors = capsys.readouterr().err
    for text in ("sqnr is 23", "fid_lite0 is missing, expected 74", "model_mb is 4.001"):
        assert text in errors
    for other in runs.glob("s/q_dit-w8a8-*/result.json"):
        other.unlink()
    assert main([*base, "--expect", str(old)]) == 1
    assert "q_dit w8a8: the row is missing" in capsys.readouterr().err
    assert main([*base, "--rows", "sampler.steps", "quantizer", "--expect", str(old)]) == 2


def test_expect_refuses_what_is_no_number(runs, tmp_path, capsys):
    old = tmp_path / "old.csv"
    assert main(["--runs-dir", str(runs), "--format", "csv", "--out", str(old)]) == 0
    old.write_text(old.read_text().replace("21,", "21 dB,"))
    assert main(["--runs-dir", str(runs), "--expect", str(old)]) == 2
    assert "sqnr is '21 dB', and a number is needed" in capsys.readouterr().err


def test_expect_does_not_compare_protocols(runs, tmp_path, capsys):
    old = tmp_path / "old.csv"
    assert main(["--runs-dir", str(runs), "--format", "csv", "--out", str(old)]) == 0
    old.write_text(old.read_text().replace("N=256", "N=1024"))
    assert main(["--runs-dir", str(runs), "--expect", str(old)]) == 1
    assert "expected emoji_dit|emoji|ddim20|cfg=2.0|N=1024" in capsys.readouterr().err
