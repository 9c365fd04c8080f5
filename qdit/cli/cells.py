"""A line for each cell of a sweep that has ended: which of how many, what it found, how long the rest may take.

The controller of the sweep counts its cells; the processes that carry them out, which a launcher may have started, read
that in their environment, and note for the controller how each cell has ended. Imports no torch.
"""

import json
import logging
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

log = logging.getLogger("qdit")
VARIABLE = "QDIT_SWEEP"
"""Cells of the sweep (0: not known), when it began, in seconds since 1970, and its token, which no other sweep has."""


def begin(count: int) -> None:
    """Note, for the processes of a sweep, that it has `count` cells and begins now; 0 where that is not known."""
    os.environ[VARIABLE] = f"{count} {time.time():.0f} {secrets.token_hex(8)}"


def note(runs_dir: Path, study: str, outcome: str) -> None:
    """Note how a cell has ended: "done", or the kind of its failure, "user" or "internal".

    The notes of a sweep are a file of its own: its records may be another process's, or not be written at all.
    """
    if (file := _notes(runs_dir)) is not None:
        with suppress(OSError):
            runs_dir.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([outcome, study]) + "\n")


def noted(runs_dir: Path) -> list[tuple[str, str]]:
    """The outcome and the study of each cell that was noted in this sweep; they are forgotten with this."""
    if (file := _notes(runs_dir)) is None:
        return []
    found: list[tuple[str, str]] = []
    with suppress(OSError, ValueError):
        found = [(str(outcome), str(study)) for outcome, study in map(json.loads, file.read_text("utf-8").splitlines())]
    with suppress(OSError):
        file.unlink()
    return found


def _notes(runs_dir: Path) -> Path | None:
    """The file of this sweep's notes; None outside of one."""
    *_, token = os.environ.get(VARIABLE, "").rsplit(" ", 1)
    return runs_dir / f".sweep-{token}" if token.isalnum() and len(token) == 16 else None


def tell(number: int, name: str, record: Mapping[str, Any] | None, metric: str) -> None:
    """Log that a cell has ended.

    Args:
        number: of the cell, from 0.
        name: of its run.
        record: of its run; None where it failed.
        metric: whose value is told, if the run has it.
    """
    count, start, *_ = [*os.environ.get(VARIABLE, "").split(" "), ""]
    known = int(count) if count.isdecimal() and start.isdecimal() else 0
    place = f"{number + 1} of {known}" if known else str(number + 1)
    log.info("[%s] %s: %s%s", place, name, _found(record, metric), _left(number + 1, known, start))


def _found(record: Mapping[str, Any] | None, metric: str) -> str:
    if record is None:
        return "failed"
    found = (record.get("metrics") or {}).get(metric)
    if not found:
        return "done"
    error = "" if found.get("stderr") is None else f" ± {found['stderr']:.2g}"
    return f"{metric} {found['value']:.4g}{error}"


def _left(done: int, count: int, start: str) -> str:
    """How long the other cells take if they are like those before; nothing where that is not known."""
    if done >= count:
        return ""
    seconds = (time.time() - int(start)) / done * (count - done)
    return f"; about {timedelta(seconds=round(seconds))} left"
