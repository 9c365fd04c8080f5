"""The Hydra callback of a multirun: checks its cells and folder before; prints its table, sets the exit code after.

Hydra calls it in the controller (`hydra.callbacks.table`). Jobs record their own failure in result.json and let the
sweep go on, so the exit code is decided here. Imports no torch; pandas only when there is a table to print.
"""

import json
import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from qdit.cli.cells import begin
from qdit.cli.mistyped import unknown_options
from qdit.config import build
from qdit.errors import UserError, from_problems
from qdit.storage.atomic import writable
from qdit.storage.names import component
from qdit.tracking import compared

_started: list[tuple[Path, str]] = []  # the studies of the sweep that this process controls

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
        """Remember which records exist; leave with code 2 if nothing could be written, or every cell is wrong."""
        runs_dir = Path(str(config.runs_dir))
        try:
            cells = _cells(config)
            chosen = _studies(config, cells)
            _refuse_sweep(config, cells)
            for key in ("runs_dir", "cache_dir"):
                writable(Path(str(config[key])), key)
        except UserError as error:
            print(error, file=sys.stderr)
            raise SystemExit(2) from None
        begin(len(cells))
        _started[:] = [(runs_dir, study) for study in chosen]
        for folder in (runs_dir, *(runs_dir / study for study in chosen)):
            self.before |= _records(folder)
            _unrecorded(folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; leave with code 1 or 2 if a run that this sweep made has failed."""
        runs_dir = Path(str(config.runs_dir))
        kinds = _unrecorded(runs_dir)
        for _, study in _started:
            print_table(runs_dir, study)
            made = [path for path, time in _records(runs_dir / study).items() if self.before.get(path) != time]
            if made and config.get("logger") is not None:
                compared(build(config.logger), study, runs_dir / study, partial(_page, runs_dir, study))
            kinds |= {kind for path in made if (kind := _failure(path)) is not None} | _unrecorded(runs_dir / study)
        _started.clear()
        if kinds:
            raise SystemExit(2 if kinds == {"user"} else 1)


def _cells(config: DictConfig) -> list[list[str]]:
    """The overrides of each cell of a grid; none where a sweeper chooses them on its way."""
    sweeper = OmegaConf.select(config, "hydra.sweeper")
    if sweeper is None or not str(sweeper["_target_"]).endswith("BasicSweeper"):
        return []
    words = [*(f"{k}={v}" for k, v in (sweeper.params or {}).items()), *config.hydra.overrides.task]
    loader = GlobalHydra.instance().config_loader()
    try:
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
        return [cell for batch in BasicSweeper.split_arguments(overrides, None) for cell in batch]
    except HydraException:
        return []  # the sweeper will tell


def _studies(config: DictConfig, cells: list[list[str]]) -> list[str]:
    """The studies of a sweep, each a name of one folder."""
    found = [_study(cell, config.study) for cell in cells] or [config.study]
    return [component(study, "study") for study in dict.fromkeys(found)]


def _study(cell: list[str], default: object) -> object:
    """The study of a cell, before it is composed: Hydra makes its folder."""
    words = [word for word in cell if re.match(r"\+*study=", word)]
    return OverridesParser.create().parse_override(words[-1]).value() if words else default


def _refuse_sweep(config: DictConfig, cells: list[list[str]]) -> None:
    """Raise one error if an option is not there, or all cells are wrong in the same way that shows without a model."""
    from qdit.runs.settled import complaints

    if not cells:
        return
    loader = GlobalHydra.instance().config_loader()
    if unknown := unknown_options(loader, (word for cell in cells for word in cell)):
        raise from_problems(unknown, "this sweep")
    common: list[str] | None = None
    for cell in cells if len(cells) > 1 else []:
        composed = loader.load_sweep_config(config, cell)
        with open_dict(composed):
            del composed["hydra"]
        found = complaints(composed)
        common = [text for text in (found if common is None else common) if text in found]
        if not common:
            return
    if common:
        raise from_problems(common, f"each of the {len(cells)} runs of this sweep")


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


def _page(runs_dir: Path, study: str) -> str:
    """The page of `qdit-report` on a study."""
    from qdit.cli.recall import command
    from qdit.report import page
    from qdit.tables import load_results

    return page(load_results(runs_dir, study), study, command)


def print_finished() -> None:
    """Print the tables of a sweep that was stopped, if any run of it is finished."""
    for runs_dir, study in _started:
        if _records(runs_dir / study):
            print_table(runs_dir, study)


def print_table(runs_dir: Path, study: str) -> None:
    """Print a study's table as Markdown; runs of several protocols stand apart in it."""
    from qdit.tables import build_table, compare, is_comparison, load_results, render

    try:
        frame = load_results(runs_dir, study)
        table = (compare if is_comparison(frame) else build_table)(frame, mix_protocols=True)
        print(render(table, "markdown"), end="")
    except UserError as error:
        print(error, file=sys.stderr)
