"""The Hydra callback of a multirun: checks its cells and folder before; prints its table, sets the exit code after.

Hydra calls it in the controller (`hydra.callbacks.table`). Jobs record their own failure in result.json and let the
sweep go on, so the exit code is decided here. Imports no torch; pandas only when there is a table to print.
"""

import json
import os
import re
import shlex
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from qdit.cli.cells import begin, noted
from qdit.cli.entry import hushed
from qdit.cli.mistyped import unknown_options
from qdit.config import build
from qdit.errors import UserError, from_problems
from qdit.storage.atomic import writable
from qdit.storage.names import component, fits
from qdit.tracking import compared

if TYPE_CHECKING:
    import pandas as pd

_started: list[tuple[Path, str]] = []  # the studies of the sweep that this process controls
_OVERLAY = re.compile(r"\+*(experiment|grid|local)(@[^=]*)?=")
"""Words that may bring a study of their own."""


class TableCallback(Callback):
    """Check the runs folder, print the study's table, exit 1 after a failed run, 2 when only the user can mend it.

    Hydra turns an exception of a callback into a warning, so that only SystemExit ends a sweep.
    """

    def __init__(self) -> None:
        self.before: dict[Path, int] = {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember which records exist; leave with code 2 if nothing could be written, or every cell is wrong."""
        runs_dir = Path(str(config.runs_dir))
        try:
            cells = _cells(config)
            _refuse_unknown(cells)
            _refuse_one_folder(cells)
            chosen = _studies(config, cells)
            _refuse_common(config, cells)
            for key in ("runs_dir", "cache_dir"):
                writable(Path(str(config[key])), key)
        except (UserError, HydraException) as error:
            if isinstance(error, HydraException) and os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise  # Hydra meets it again when it composes the cell, and tells all of it
            print(error, file=sys.stderr)
            raise SystemExit(2) from None
        begin(len(cells))
        _started[:] = [(runs_dir, study) for study in chosen]
        for study in chosen:
            self.before |= _records(runs_dir / study)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; leave with code 1 or 2 if a run that this sweep made has failed."""
        runs_dir = Path(str(config.runs_dir))
        notes = noted(runs_dir)
        studies = _watched(runs_dir, notes)
        _started.clear()
        made = {study: self._made(runs_dir / study) for study in studies}
        kinds = {outcome for outcome, _ in notes} - {"done"}
        if not notes:  # of processes that do not know of the sweep: what was written meanwhile tells
            kinds = {kind for paths in made.values() for path in paths if (kind := _failure(path)) is not None}
        for study in [] if config.get("dry") else studies:
            try:
                print_table(runs_dir, study)
                if made[study] and config.get("logger") is not None:
                    compared(build(config.logger), study, runs_dir / study, partial(_page, runs_dir, study))
            except Exception:
                traceback.print_exc()
                kinds.add("internal")
        if kinds:
            raise SystemExit(2 if kinds == {"user"} else 1)

    def _made(self, folder: Path) -> list[Path]:
        """The records of a study that were written since the sweep began."""
        return [path for path, time in _records(folder).items() if self.before.get(path) != time]


def _watched(runs_dir: Path, notes: list[tuple[str, str]]) -> list[str]:
    """The studies of a sweep: those that its words name, and those that only its cells could tell."""
    known = [study for _, study in _started]
    return list(dict.fromkeys([*known, *(study for _, study in notes if fits(study))]))


def _cells(config: DictConfig) -> list[list[str]]:
    """The overrides of each cell of a grid; none where a sweeper chooses them on its way."""
    sweeper = OmegaConf.select(config, "hydra.sweeper")
    if sweeper is None or not str(sweeper["_target_"]).endswith("BasicSweeper"):
        return []
    # As they were written: `study=${quantizer.name}` is another one in each cell.
    task, params = (
        OmegaConf.to_container(config.hydra[part][key] or OmegaConf.create(empty), resolve=False)
        for part, key, empty in (("overrides", "task", []), ("sweeper", "params", {}))
    )
    words = [*(f"{k}={v}" for k, v in params.items()), *task]  # pyright: ignore
    loader = GlobalHydra.instance().config_loader()
    try:
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
        return [cell for batch in BasicSweeper.split_arguments(overrides, None) for cell in batch]
    except HydraException:
        return []  # the sweeper will tell


def _studies(config: DictConfig, cells: list[list[str]]) -> list[str]:
    """The studies of a sweep as far as they are known before it, each a name of one folder."""
    found = [study for cell in cells or [[]] for study in _study(config, cell)]
    return [component(study, "study") for study in dict.fromkeys(found)]


def _study(config: DictConfig, cell: list[str]) -> list[Any]:
    """The study of a cell, before Hydra makes its folder; nothing where only the running cell could tell."""
    words = [word for word in cell if re.match(r"\+*study=", word)]
    value = OverridesParser.create().parse_override(words[-1]).value() if words else None
    if words and "${" not in str(value):
        return [value]
    own = bool(words) or OmegaConf.is_interpolation(config, "study") or any(map(_OVERLAY.match, cell))
    try:
        return [(_composed(config, cell) if own and cell else config).study]
    except OmegaConfBaseException:
        return []


def _composed(config: DictConfig, cell: list[str]) -> DictConfig:
    return GlobalHydra.instance().config_loader().load_sweep_config(config, cell)


def _refuse_unknown(cells: list[list[str]]) -> None:
    """Raise one error if an option is not there."""
    words = [word for cell in cells for word in cell]
    if words and (unknown := unknown_options(GlobalHydra.instance().config_loader(), words)):
        raise from_problems(unknown, "this sweep")


def _refuse_one_folder(cells: list[list[str]]) -> None:
    """Raise one error if cells differ in `execution` alone: they are one run, whose record keeps one.

    Raises:
        UserError: they do, in one study.
    """
    found: dict[tuple[str, ...], set[str]] = {}
    for cell in cells:
        rest = tuple(word for word in cell if not word.startswith("execution="))
        found.setdefault(rest, set()).update(set(cell) - set(rest))
    apart = re.compile(r"study=.*\$\\*\{execution")  # the parser puts a backslash before a brace
    several = next((own for rest, own in found.items() if len(own) > 1 and not any(map(apart.match, rest))), None)
    if several is not None:
        raise UserError(
            f"{' and '.join(sorted(several))} are one run, whose record keeps one of them: name a study for each, as "
            "study='mine_${execution}' does"
        )


def _refuse_common(config: DictConfig, cells: list[list[str]]) -> None:
    """Raise one error if all cells are wrong in the same way that shows without a model."""
    from qdit.runs.settled import complaints

    common: list[str] | None = None
    for cell in cells if len(cells) > 1 else []:
        composed = _composed(config, cell)
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
    for runs_dir in dict.fromkeys(runs_dir for runs_dir, _ in _started):
        for study in _watched(runs_dir, noted(runs_dir)):
            if _records(runs_dir / study):
                print_table(runs_dir, study)


def print_table(runs_dir: Path, study: str) -> None:
    """Print what a study has found as one Markdown table, and the command that shows more of it."""
    from qdit.tables import load_results, overview, render

    try:
        frame = load_results(runs_dir, study)
        print(render(overview(frame), "markdown"), end="")
        print(f"\nMore: {_more(runs_dir, study, frame)}", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
    except BrokenPipeError:  # whoever reads has seen enough; the runs are what counts
        if not hushed():
            raise


def _more(runs_dir: Path, study: str, frame: "pd.DataFrame") -> str:
    """The command of a study's other metrics and of its costs, which shows several protocols where there are some."""
    from qdit.tables.select import protocol_labels, records

    words = ["qdit-table", "--study", study]
    words += [] if runs_dir == Path("runs") else ["--runs-dir", str(runs_dir)]
    return shlex.join([*words, *(["--mix-protocols"] if len(protocol_labels(records(frame))) > 1 else [])])
