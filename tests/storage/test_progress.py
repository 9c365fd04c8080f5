"""In a log, long work says where it is, and short work says nothing."""

import pytest

from qdit.storage import progress as module
from qdit.storage.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock of the test's own; tqdm's keeps going."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.HEARD, "at", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    return now


def test_a_line_before_ten_seconds_of_silence_and_none_of_what_is_short(clock, caplog, capsys):
    caplog.set_level("INFO", logger="qdit")
    for _ in progress(range(4), desc="rounding", unit="block"):
        clock[0] += 1
    assert not caplog.messages
    module.log.info("rounded")  # which breaks the silence
    bar = progress(total=100, desc="sampling", unit="image")
    for _ in range(10):
        clock[0] += 4
        bar.update(10)
        bar.refresh()
    bar.close()
    assert [line.split("%")[0] for line in caplog.messages[1:]] == [
        f"  sampling: {at:3}" for at in (20, 40, 60, 80, 100)
    ]
    assert "of 100 [" in caplog.messages[1]
    shown = capsys.readouterr()
    assert not shown.out
    assert "\r" not in shown.err


def test_nothing_is_shown_of_hidden_work(clock, caplog):
    caplog.set_level("INFO", logger="qdit")
    for _ in progress(range(3), desc="x", hidden=True):
        clock[0] += 20
    assert not caplog.messages


@pytest.mark.parametrize("bar", [{"work": []}, {"total": 0}, {"work": iter(()), "total": 0}])
def test_nothing_is_shown_where_all_is_done_already(bar, clock, caplog):
    caplog.set_level("INFO", logger="qdit")
    clock[0] += 20
    shown = progress(**bar, desc="rounding")
    assert not list(shown if "work" in bar else ())
    shown.close()
    assert not caplog.messages
