"""A run's progress as a file of its own, `progress.csv` in its folder: a line a value, for any spreadsheet or pandas.

Lines are appended and flushed, so that a run can be watched, and one that is resumed goes on where it was. The form is
long, because stages report values of different names. Imports no torch.
"""

import csv
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from qdit.tracking.base import Values, note_reported, was_reported

NAME = "progress.csv"
"""In a run's folder."""
COLUMNS = ("seconds", "stage", "step", "name", "value")
"""Seconds since 1970; the stage and its step, as `qdit.tracking.Tracker.log` has them; a value and its name."""


@dataclass(frozen=True)
class CsvTracker:
    """Writes what a run reports into its folder. `stage` is `final` for the metrics of the record, with their errors.

    >>> import pandas as pd
    >>> progress = pd.read_csv("runs/mine/rtn-w4a8-1a2b3c4d/progress.csv")    # doctest: +SKIP
    >>> progress.query("stage == 'rounding'").pivot(index="step", columns="name", values="value")  # doctest: +SKIP
    """

    def knows(self, run_dir: Path) -> bool:
        """Whether the folder has its file, with all of the record."""
        return (run_dir / NAME).is_file() and was_reported(run_dir, "csv")

    @contextmanager
    def open(self, config: dict[str, Any], study: str, name: str, run_id: str, run_dir: Path) -> Iterator["_Lines"]:
        """Append to the file of a run, which begins anew with `overwrite=true`."""
        run_dir.mkdir(parents=True, exist_ok=True)
        file = run_dir / NAME
        if config.get("overwrite"):
            file.unlink(missing_ok=True)
        with file.open("a", encoding="utf-8", newline="") as stream:
            lines = _Lines(stream)
            yield lines
        if lines.finished is not None:
            note_reported(run_dir, "csv", lines.finished)

    def compare(self, study: str, folder: Path, page: Callable[[], str]) -> None:
        """Nothing: `qdit-table --format csv` has a study's numbers."""


class _Lines:
    """The tracker of one run."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.finished: Mapping[str, Any] | None = None
        self.writer = csv.writer(stream, lineterminator="\n")
        if stream.tell() == 0:
            self.writer.writerow(COLUMNS)

    def log(self, values: Values, step: int, stage: str) -> None:
        """Append a line for each value."""
        found = values() if callable(values) else values
        now = f"{time.time():.3f}"
        self.writer.writerows((now, stage, step, name, repr(float(value))) for name, value in found.items())
        self.stream.flush()

    def finish(self, record: Mapping[str, Any], run_dir: Path) -> None:
        """Append the metrics of the record, and their standard errors as `<metric>_stderr`."""
        final: dict[str, float] = {}
        for name, metric in (record.get("metrics") or {}).items():
            final[name] = metric["value"]
            if metric.get("stderr") is not None:
                final[f"{name}_stderr"] = metric["stderr"]
        self.log(final, 0, "final")
        self.finished = record
