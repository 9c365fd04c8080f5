"""A sweep says of each cell that has ended where it is."""

import pytest

from qdit.cli import cells

RECORD = {"metrics": {"sqnr": {"value": 20.12345, "stderr": 0.412}}}


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.delenv(cells.VARIABLE, raising=False)
    caplog.set_level("INFO", logger="qdit")
    return caplog


def test_a_line_has_the_place_the_value_and_the_time_left(said, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(cells.time, "time", lambda: now[0])
    cells.begin(4)
    now[0] += 60
    cells.tell(0, "rtn-w4a8", RECORD, "sqnr")
    now[0] += 60
    cells.tell(1, "q_dit-w4a8", None, "sqnr")
    cells.tell(3, "fp", {"metrics": {}}, "sqnr")
    assert said.messages == [
        "[1 of 4] rtn-w4a8: sqnr 20.12 ± 0.41; about 0:03:00 left",
        "[2 of 4] q_dit-w4a8: failed; about 0:02:00 left",
        "[4 of 4] fp: done",
    ]


def test_what_is_not_known_is_not_said(said, monkeypatch):
    cells.begin(0)
    cells.tell(2, "rtn", {"metrics": {"sqnr": {"value": 1.0, "stderr": None}}}, "sqnr")
    monkeypatch.setenv(cells.VARIABLE, "of another program")
    cells.tell(2, "rtn", RECORD, "psnr")
    assert said.messages == ["[3] rtn: sqnr 1", "[3] rtn: done"]


def test_a_sweep_reads_the_notes_of_its_own_cells_and_leaves_those_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv(cells.VARIABLE, "")
    cells.note(tmp_path, "s", "user")  # of no sweep
    assert cells.noted(tmp_path) == []
    cells.begin(2)
    cells.note(tmp_path, "s", "user")
    first = cells.os.environ[cells.VARIABLE]
    cells.begin(0)  # another sweep starts in the same folder, and ends
    cells.note(tmp_path, "two words", "done")
    assert cells.noted(tmp_path) == [("done", "two words")]
    monkeypatch.setenv(cells.VARIABLE, first)
    cells.note(tmp_path, "t", "internal")
    assert cells.noted(tmp_path) == [("user", "s"), ("internal", "t")]
    assert list(tmp_path.iterdir()) == []
