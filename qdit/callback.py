"""What surrounds a multirun: a writable place before it, its table and an honest exit code after it.

Hydra calls it in the controller (`hydra.callbacks.table`). Jobs record their own failure in result.json and let the
sweep go on, so the exit code is decided here. Imports no torch; pandas only when there is a table to print.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from qdit.errors import UserError
from qdit.store import writable

UNRECORDED = ".unrecorded"
"""File of a study: a line for each failure of its sweep that no record could hold, from whichever process."""


def note_unrecorded(study_dir: Path, kind: str) -> None:
    """Note a failure ("user" or "internal") of a cell that has no record; the exit code of the sweep tells of it."""
    with suppress(OSError):
        study_dir.mkdir(parents=True, exist_ok=True)
        with (study_dir / UNRECORDED).open("a") as stream:
            stream.write(f"{kind}\n")


def _unrecorded(study_dir: Path) -> set[str]:
    """The kinds of failures that were noted; they are forgotten with this."""
    found: set[str] = set()
    with suppress(OSError):
        found = set((study_dir / UNRECORDED).read_text().split())
        (study_dir / UNRECORDED).unlink()
    return found


class TableCallback(Callback):
    """Check the runs folder, print the study's table, exit 1 after a failed run, 2 when only the user can mend it."""

    def __init__(self) -> None:
        self.before: dict[Path, int] = {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember which records exist; leave with code 2 if nothing could be written."""
        try:
            for key in ("runs_dir", "cache_dir"):
                writable(Path(str(config[key])), key)
        except UserError as error:
            print(error, file=sys.stderr)
            raise SystemExit(2) from None
        study_dir = Path(str(config.runs_dir)) / str(config.study)
        self.before = _records(study_dir)
        _unrecorded(study_dir)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; leave with code 1 or 2 if a run that this sweep made has failed."""
        runs_dir, study = Path(str(config.runs_dir)), str(config.study)
        print_table(runs_dir, study)
        after = _records(runs_dir / study)
        made = [path for path, time in after.items() if self.before.get(path) != time]
        kinds = {kind for path in made if (kind := _failure(path)) is not None} | _unrecorded(runs_dir / study)
        if kinds:
            raise SystemExit(2 if kinds == {"user"} else 1)


def _records(study_dir: Path) -> dict[Path, int]:
    """Return each record's time of writing: what changes during the sweep was made by it, whatever the clocks say."""
    return {path: path.stat().st_mtime_ns for path in study_dir.glob("*/result.json")}


def _failure(path: Path) -> str | None:
    """Return the kind of error ("user" or "internal") of a run that failed, or failed to be extended; else None."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        failed = record["status"] == "failed" or "update_error" in record
        return (record.get("error_kind") or "internal") if failed else None
    except (OSError, ValueError, KeyError, AttributeError):
        return "internal"  # a record of this sweep that cannot be read is a failure of ours


def print_table(runs_dir: Path, study: str) -> None:
    """Print a study's table as Markdown; runs of several protocols stand apart in it."""
    from qdit.tables import build_table, compare, is_comparison, load_results, render

    try:
        frame = load_results(runs_dir, study)
        table = (compare if is_comparison(frame) else build_table)(frame, mix_protocols=True)
        print(render(table, "markdown"), end="")
    except UserError as error:
        print(error, file=sys.stderr)
