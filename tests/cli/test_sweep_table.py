"""The table and the exit code at the end of a multirun."""

import shlex
from pathlib import Path

import pytest
from helpers.fake_records import PROTOCOL, failed, fid, metric, record, write
from hydra._internal.callbacks import Callbacks
from omegaconf import OmegaConf

from qdit.cli import cells
from qdit.cli import sweep as callback
from qdit.cli.sweep import TableCallback
from qdit.cli.table import main as table
from qdit.tracking import NoTracker


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv(cells.VARIABLE, "")  # and what it was comes back


def sweep(runs_dir, made, meanwhile=lambda: None, **more) -> int:
    """Go through Hydra's own dispatcher, which swallows exceptions but not SystemExit."""
    config = OmegaConf.create({"runs_dir": str(runs_dir), "cache_dir": str(runs_dir / "cache"), "study": "s", **more})
    callbacks = Callbacks()
    callbacks.callbacks = [TableCallback()]
    try:
        callbacks.on_multirun_start(config=config)
        write(runs_dir, *made)
        meanwhile()
        callbacks.on_multirun_end(config=config)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize(
    ("kinds", "code"), [((), 0), (("user",), 2), (("user", "user"), 2), (("user", "internal"), 1), ((None,), 1)]
)
def test_exit_code_of_a_sweep(tmp_path, capsys, kinds, code):
    earlier = failed("rtn", "w3a8", "an earlier sweep's failure", error_kind="internal")
    write(tmp_path, earlier)
    made = [record("rtn", "w8a8", {"sqnr": metric(40.0)})]
    made += [failed(f"bad{i}", "w8a8", "no", error_kind=kind) for i, kind in enumerate(kinds)]
    assert sweep(tmp_path, made) == code
    assert "| rtn" in capsys.readouterr().out


def test_a_sweep_over_protocols_still_gets_its_table(tmp_path, capsys):
    made = [
        record("rtn", "w8a8", {"sqnr": metric(40.0)}, protocol=PROTOCOL.replace("N=256", n)) for n in ("N=1", "N=2")
    ]
    assert sweep(tmp_path, made) == 0
    assert "| protocol" in capsys.readouterr().out


def test_runs_dir_that_cannot_be_written_stops_a_sweep(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert sweep(tmp_path / "file", []) == 2
    assert "cannot write runs_dir=" in capsys.readouterr().err


def test_a_sweep_that_made_something_reports_its_study(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(NoTracker, "compare", lambda self, *about: told.append((*about[:2], about[2]())))
    more = {"logger": {"_target_": "qdit.tracking.NoTracker"}}
    sweep(tmp_path, [record("rtn", "w8a8", {"sqnr": metric(40.0)})], **more)
    [(study, folder, page)] = told
    assert (study, folder) == ("s", tmp_path / "s")
    assert "<html" in page
    assert "rtn" in page
    sweep(tmp_path, [], **more)
    assert len(told) == 1


def test_a_dry_sweep_has_no_table_and_its_failures_count(tmp_path, capsys):
    assert sweep(tmp_path, [], lambda: cells.note(tmp_path, "s", "done"), dry=True) == 0
    assert sweep(tmp_path, [], lambda: cells.note(tmp_path, "s", "user"), dry=True) == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("kinds", "code"), [((), 1), (("user",), 1), (("internal",), 1)])
def test_a_table_that_cannot_be_made_hides_no_failure(tmp_path, capsys, monkeypatch, kinds, code):
    monkeypatch.setattr(callback, "print_table", lambda *where: 1 / 0)
    made = [failed(f"bad{i}", "w8a8", "no", error_kind=kind) for i, kind in enumerate(kinds)]
    assert sweep(tmp_path, made) == code
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_failure_of_another_sweep_in_the_study_is_not_this_ones(tmp_path):
    made = [failed("bad", "w8a8", "no", error_kind="internal"), record("rtn", "w8a8", {"sqnr": metric(40.0)})]
    assert sweep(tmp_path, made, lambda: cells.note(tmp_path, "s", "done")) == 0


def test_a_study_that_only_the_cells_could_tell_has_its_table(tmp_path, capsys):
    made = [record("rtn", "w8a8", {"sqnr": metric(40.0)}, study="t")]
    assert sweep(tmp_path, made, lambda: cells.note(tmp_path, "t", "done")) == 0
    assert "| rtn" in capsys.readouterr().out


def test_a_reader_that_has_gone_is_no_failure(tmp_path, monkeypatch):
    def gone(*text, **how):
        raise BrokenPipeError

    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}))
    monkeypatch.setattr(callback, "hushed", lambda: True)
    monkeypatch.setattr(callback, "print", gone, raising=False)
    callback.print_table(tmp_path, "s")


def test_a_sweep_of_methods_and_bits_ends_in_one_table_and_the_command_of_more(tmp_path, capsys):
    def cell(quantizer, family, bits, sqnr):
        measured = {"sqnr": metric(sqnr, 0.4), "ssim": metric(0.9, 0.01), "fid_lite0": fid(62.0)}
        return record(quantizer, bits, measured, config={"quantizer.family": family})

    full = record("fp", "w16a16", {"fid_lite0": fid(60.0)})
    made = [cell(*each, bits, 20.0) for each in (("rtn", "baseline"), ("q_dit", "dit")) for bits in ("w4a4", "w8a8")]
    assert sweep(tmp_path, [full, *made]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in out.splitlines() if line.startswith("| ")]
    assert rows == [
        *(["bits", "quantizer"], ["w16a16", "full precision"]),
        *(["w8a8", "rtn"], ["w8a8", "q_dit"], ["w4a4", "rtn"], ["w4a4", "q_dit"]),
    ]
    assert "20.0 ± 0.4" in out
    assert "Also measured: fid_lite0 (--metrics all)." in out
    last = out.splitlines()[-1]
    assert last == f"More: qdit-table --study s --runs-dir {tmp_path}"
    assert table(shlex.split(last)[2:]) == 0


def test_the_command_of_more_shows_several_protocols_and_folders_with_spaces(tmp_path, capsys, monkeypatch):
    made = [record("rtn", "w8a8", {"sqnr": metric(40.0)}, protocol=PROTOCOL.replace("256", n)) for n in ("1", "2")]
    write(tmp_path / "my runs", *made)
    callback.print_table(tmp_path / "my runs", "s")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(" --mix-protocols")
    assert table(shlex.split(last)[2:]) == 0
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs", made[0])
    capsys.readouterr()
    callback.print_table(Path("runs"), "s")
    assert capsys.readouterr().out.splitlines()[-1] == "More: qdit-table --study s"
