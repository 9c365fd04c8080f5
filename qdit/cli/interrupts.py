"""Ctrl-C and SIGTERM: one line instead of a traceback.

It imports the standard library alone, so that signals are handled from the first second. Files are whole at any time,
so that nothing needs to be saved when a signal comes: the same command goes on from there.
"""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__()


@contextmanager
def taken() -> Iterator[None]:
    """Let the first signal raise `Stopped`, and a second one end the process at once; ignored ones stay ignored."""
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS if here}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Stopped(number)


def leave_to_controller() -> None:
    """In a worker of joblib: ignore Ctrl-C, which reaches every process; the controller ends its workers."""
    if ".loky" in type(multiprocessing.current_process()).__module__:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def report(stop: KeyboardInterrupt) -> int:
    """Say in one line how to go on, then show what a sweep has finished; the exit code, 130 or 143."""
    number = stop.number if isinstance(stop, Stopped) else int(signal.SIGINT)
    if sys.stderr.isatty():
        print(file=sys.stderr)  # below a progress bar
    print(f"qdit: stopped by {signal.Signals(number).name}; the same command goes on from here", file=sys.stderr)
    if (callback := sys.modules.get("qdit.cli.sweep")) is not None:
        callback.print_finished()
    sys.stdout.flush()
    return 128 + number
