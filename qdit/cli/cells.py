"""A line for each cell of a sweep that has ended: which of how many, what it found, how long the rest may take.

The controller of the sweep counts its cells; the processes that carry them out, which a launcher may have started, read
that in their environment. Imports no torch.
"""

import logging
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

log = logging.getLogger("qdit")
VARIABLE = "QDIT_SWEEP"
"""Cells of the sweep, and when it began, in seconds since 1970."""


def begin(count: int) -> None:
    """Note, for the processes of a sweep, that it has `count` cells and begins now; 0 where that is not known."""
    if count:
        os.environ[VARIABLE] = f"{count} {time.time():.0f}"
    else:
        os.environ.pop(VARIABLE, None)


def tell(number: int, name: str, record: Mapping[str, Any] | None, metric: str) -> None:
    """Log that a cell has ended.

    Args:
        number: of the cell, from 0.
        name: of its run.
        record: of its run; None where it failed.
        metric: whose value is told, if the run has it.
    """
    count, _, start = os.environ.get(VARIABLE, "").partition(" ")
    place = f"{number + 1} of {count}" if count.isdecimal() else str(number + 1)
    log.info("[%s] %s: %s%s", place, name, _found(record, metric), _left(number + 1, count, start))


def _found(record: Mapping[str, Any] | None, metric: str) -> str:
    if record is None:
        return "failed"
    found = (record.get("metrics") or {}).get(metric)
    if not found:
        return "done"
    error = "" if found.get("stderr") is None else f" ± {found['stderr']:.2g}"
    return f"{metric} {found['value']:.4g}{error}"


def _left(done: int, count: str, start: str) -> str:
    """How long the other cells take if they are like those before; nothing where that is not known."""
    if not (count.isdecimal() and start.isdecimal()) or done >= int(count):
        return ""
    seconds = (time.time() - int(start)) / done * (int(count) - done)
    return f"; about {timedelta(seconds=round(seconds))} left"
