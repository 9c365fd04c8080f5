"""Ctrl-C and SIGTERM: one line and the exit code of the signal, from the first second on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.fake_records import metric, record, write

from qdit.cli import interrupts
from qdit.cli import sweep as callback

# A signal as the first heavy module is imported, and one while a lock is waited for.
EARLY = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "hydra":
            os.kill(os.getpid(), {number})
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
sys.meta_path.insert(0, Finder())
from qdit.cli.main import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_first_second_is_one_line(number, code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EARLY.format(number=int(number))], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr == f"qdit: stopped by {number.name}; the same command goes on from here\n"


def test_what_a_sweep_has_finished_is_shown(tmp_path, monkeypatch, capsys):
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}))
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(callback, "_started", [(Path(tmp_path), study) for study in ("s", "empty", "none")])
    with pytest.raises(interrupts.Stopped) as stop, interrupts.taken():
        os.kill(os.getpid(), signal.SIGTERM)
    assert interrupts.report(stop.value) == 143
    captured = capsys.readouterr()
    assert captured.out.count("| rtn") == 1
    assert len(captured.err.splitlines()) == 1


def test_handlers_are_given_back_and_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.taken():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
