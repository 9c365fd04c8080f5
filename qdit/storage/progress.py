"""How far long work is: a bar in a terminal; in a log, a line before ten seconds of silence. Imports no torch."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Sized
from typing import Any, TypeVar

from tqdm import tqdm

log = logging.getLogger("qdit")
_T = TypeVar("_T")
SECONDS = 7.0
"""Of silence before a line, so that with a step of the work it is not ten; what is done sooner says nothing."""
SHAPE = "  {desc}: {percentage:3.0f}% of {total} [{elapsed}, {remaining} left, {rate_fmt}]"


class _Heard(logging.Filter):
    """When the log last said something, whatever it was."""

    at = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the time of each line, and the line."""
        self.at = time.monotonic()
        return True


HEARD = _Heard()
log.addFilter(HEARD)


class _Lines:
    """What a bar is written to where there is no terminal: a state of it becomes a line if the log was silent."""

    def write(self, text: str) -> None:
        """Log a state, if it is time."""
        if text.strip() and time.monotonic() - HEARD.at >= SECONDS:
            log.info("%s", text.strip("\r\n").rstrip())

    def flush(self) -> None:
        """Nothing is kept back."""


def progress(work: Iterable[_T] | None = None, *, hidden: bool = False, **about: Any) -> Any:
    """A `tqdm`, with lines instead of a bar where stderr is no terminal; of no work, nothing is shown.

    Args:
        work: what to iterate over; None for a bar that is moved by hand.
        hidden: show nothing.
        about: other arguments of tqdm: `desc`, `unit`, `total`, `bar_format` of the bar.
    """
    nothing = about.get("total", len(work) if isinstance(work, Sized) else None) == 0
    if hidden or nothing or sys.stderr.isatty():
        return tqdm(work, disable=hidden or nothing, **about)
    return tqdm(work, **about | {"file": _Lines(), "bar_format": SHAPE, "mininterval": 1.0, "leave": False})


class StepBar:
    """A progress bar over samples, with rate and time left, that also moves between denoising steps."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self.bar: Any = None  # a tqdm

    def stepping(self, indices: list[int], steps: int) -> Callable[..., None]:
        """A sampler callback that moves the bar by one step of a batch."""
        if self.bar is None:
            shape = "{desc} {percentage:3.0f}%|{bar:24}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
            about: dict[str, Any] = {"desc": self.label, "unit": "image", "bar_format": shape}
            self.bar = progress(total=self.total, initial=indices[0], **about)  # a resumed run's rate is its own
        bar, batch = self.bar, len(indices)

        def step(*_: object) -> None:
            bar.update(min(batch / steps, bar.total - bar.n))  # sums of shares may go beyond

        return step

    def reach(self, done: int) -> None:
        """Note how many samples exist; close at the end."""
        if self.bar is not None:
            self.bar.n = done
            self.bar.refresh()
            if done >= self.total:
                self.bar.close()
                self.bar = None
