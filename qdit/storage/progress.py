"""How far a long piece of work is: a bar in a terminal; in a log, a line every ten seconds. Imports no torch."""

import logging
import sys
import time
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

log = logging.getLogger("qdit")
_T = TypeVar("_T")
SECONDS = 10.0
"""Between two lines, and before the first: what is done sooner says nothing."""
SHAPE = "  {desc}: {percentage:3.0f}% of {total} [{elapsed}, {remaining} left, {rate_fmt}]"


class _Lines:
    """What a bar is written to where there is no terminal: of its states, one in ten seconds becomes a line."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def write(self, text: str) -> None:
        """Log a state, if it is time."""
        if text.strip() and time.monotonic() - self.last >= SECONDS:
            self.last = time.monotonic()
            log.info("%s", text.strip("\r\n").rstrip())

    def flush(self) -> None:
        """Nothing is kept back."""


def progress(work: Iterable[_T] | None = None, *, hidden: bool = False, **about: Any) -> Any:
    """A `tqdm`, with lines instead of a bar where stderr is no terminal.

    Args:
        work: what to iterate over; None for a bar that is moved by hand.
        hidden: show nothing.
        about: other arguments of tqdm: `desc`, `unit`, `total`, `bar_format` of the bar.
    """
    if hidden or sys.stderr.isatty():
        return tqdm(work, disable=hidden, **about)
    return tqdm(work, **about | {"file": _Lines(), "bar_format": SHAPE, "mininterval": 1.0, "leave": False})
