"""Read the result.json files of a runs directory into a data frame: one row per run, failed ones included.

A file that is not a record (truncated, not JSON) is named on stderr and skipped, so that one bad file does not hide a
study. A record of another schema is refused: its numbers may mean something else.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from qdit.errors import UserError, visible
from qdit.keys import DIT, NEUTRAL, scope_of_a_dit
from qdit.storage.digest import digest
from qdit.storage.names import fits
from qdit.storage.record_check import wrong
from qdit.storage.run_folder import SCHEMA
from qdit.storage.seal import verify
from qdit.tables import collected
from qdit.tables.quantity import APART

METRIC_FIELDS = {"value": "", "stderr": "_stderr", "n": "_n", "delta": "_delta", "delta_stderr": "_delta_stderr"}
COSTS = {  # column of the frame: (field of the record's cost, unit of the column)
    "weight_bits": ("weight_bits_model", 1.0),
    "weight_bits_quantized": ("weight_bits_quantized", 1.0),
    "weight_bits_used": ("weight_bits_used", 1.0),
    "input_bits": ("input_bits", 1.0),
    "model_mb": ("model_bytes", 1e6),
    "gbops": ("bops", 1e9),
    "samples_per_second": ("samples_per_second", 1.0),
    "peak_memory_mb": ("peak_memory_bytes", 1e6),
    "resident_mb": ("resident_bytes", 1e6),
}
_DIRECTION, _SETTINGS, _PROTOCOL, _SHOWN = "_higher_is_better", "_settings", "_made_by", "_shown"
FOLDER = "_folder"
"""Behind a metric's name, the folder of the record that it is from, where that is not the run's (`duplicates`)."""
METRIC_SUFFIXES = (*METRIC_FIELDS.values(), _DIRECTION, _SETTINGS, _PROTOCOL, _SHOWN, FOLDER)
"""Of the columns of a metric."""


def load_results(runs_dir: str | Path, study: str | None = None) -> pd.DataFrame:
    """Return one row per run, from `<runs_dir>/<study>/<run>/result.json` (every study when none is given).

    Columns: `quantizer`, `bits`, `seed`, `study`, `name`, `run_id`, `status`, `error`, `error_kind`, `protocol_id`,
    `protocol`, `started`, `finished`, `git_commit`, `executed`, `folder` (the run's); for a metric X `X`, `X_stderr`,
    `X_n`, `X_delta`, `X_delta_stderr`, `X_higher_is_better` and `X_settings` (a digest of its config and reference);
    `weight_bits`, `weight_bits_quantized` and `weight_bits_used` (mean bits per weight: whole model, quantized layers,
    what a step uses of these), `input_bits` (mean bits of inputs, with scales and branches), `model_mb` (10⁶ bytes),
    `gbops` (10⁹ bit operations), `samples_per_second`, `peak_memory_mb` (the process), `resident_mb` (the network's
    tensors as it ran), `seconds_<stage>`, `seconds`; every config key by its dotted name. What is missing is NaN or
    None.

    Raises:
        UserError: no record was found (says where it looked and which studies exist), or one has an unknown schema.
    """
    runs_dir = Path(runs_dir)
    rows = [
        _row(record) | {"folder": str(path.parent)}
        for path in record_files(runs_dir, study)
        if (record := read_record(path)) is not None
    ]
    if not rows:
        raise UserError(_nothing_found(runs_dir, study))
    return _frame(rows)


def record_files(runs_dir: Path, study: str | None = None) -> list[Path]:
    """The records of a study, of all studies for None; names are taken as they are, brackets and stars too."""
    if study is None:
        return sorted(runs_dir.glob("*/*/result.json"))
    study = study.rstrip("/")  # which a shell puts behind a folder's name
    return sorted((runs_dir / study).glob("*/result.json")) if fits(study) else []


def metric_names(columns: Iterable[str]) -> list[str]:
    """Return the metrics among the columns of a frame."""
    return [column.removesuffix(_DIRECTION) for column in columns if column.endswith(_DIRECTION)]


def settings_apart(runs: list[dict[str, Any]], names: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Give a metric that was computed with several settings or references a name, and so a column, for each of them.

    Returns:
        The runs, with `fid_lite0@1a2b3c4d` in the place of `fid_lite0`, and the names of the metrics.
    """
    apart: list[str] = []
    for name in names:
        found = {_made_with(run, name) for run in runs if run.get(name) is not None}
        if len(found) < 2:
            apart.append(name)
            continue
        runs = [_renamed(run, name) for run in runs]
        apart += [f"{name}{APART}{settings}" for settings in sorted(found)]
    return runs, apart


def _made_with(run: dict[str, Any], name: str) -> str:
    """Digests of a metric's settings and, where a program elsewhere computed it, of that program."""
    found = [run.get(name + _SETTINGS) or "unknown", run.get(name + _PROTOCOL)]
    return "-".join(each for each in found if each)


def _renamed(run: dict[str, Any], name: str) -> dict[str, Any]:
    kept = {key: value for key, value in run.items() if key not in {name + suffix for suffix in METRIC_SUFFIXES}}
    if run.get(name) is None:
        return kept
    new = f"{name}{APART}{_made_with(run, name)}"
    return kept | {new + suffix: run.get(name + suffix) for suffix in METRIC_SUFFIXES}


def read_record(path: Path) -> dict[str, Any] | None:
    """Return one record; None, and a line on stderr, where the file is damaged.

    Raises:
        UserError: it has another schema.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            verify(record)
        collected.check(path, path.parents[1])
    except (OSError, ValueError, RecursionError) as error:
        return _skipped(path, str(error) or type(error).__name__)
    if not isinstance(record, dict) or "schema" not in record:
        return _skipped(path, "not a record of a qdit run")
    if record["schema"] != SCHEMA:
        raise UserError(
            f"{path} has schema {record['schema']!r}, and this qdit reads schema {SCHEMA}: "
            "use the qdit that wrote it, or make the run again"
        )
    problem = wrong(record)
    return record if problem is None else _skipped(path, problem)


def _skipped(path: Path, why: str) -> None:
    print(visible(f"{path}: damaged, skipped ({why})"), file=sys.stderr)


def _as_now(config: dict[str, Any]) -> dict[str, Any]:
    """A record's config with the keys that it is too old for, at the values that stand for what was then.

    A scope is that of the model's family, as in run ids: recipes came to name roles that a DiT does not have.
    """
    newer: dict[str, Any] = {}
    for path, value in NEUTRAL.items():
        group = path.rpartition(".")[0]
        if not group or any(key.rpartition(".")[0] == group for key in config):
            newer |= (
                {f"{path}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {path: value}
            )
    scope = {key: config.get(f"scope.{key}") for key in ("roles", "include")}
    if config.get("model._target_") == DIT and all(isinstance(each, list) for each in scope.values()):
        config = config | {f"scope.{key}": each for key, each in scope_of_a_dit(scope).items()}
    return {key: value for key, value in newer.items() if value is not None} | config


def _row(record: dict[str, Any]) -> dict[str, Any]:
    config, cost = _as_now(record.get("config") or {}), record.get("cost") or {}
    row = {
        "quantizer": config.get("quantizer.name"),
        "bits": config.get("bits.name"),
        **{key: record.get(key) for key in ("seed", "study", "name", "run_id", "status", "error", "error_kind")},
        **{key: record.get(key) for key in ("protocol_id", "protocol", "started", "finished")},
        "executed": cost.get("executed"),
        "git_commit": (record.get("git") or {}).get("commit"),
    }
    for name, metric in (record.get("metrics") or {}).items():
        row |= {name + suffix: _number((metric or {}).get(field)) for field, suffix in METRIC_FIELDS.items()}
        row[name + _DIRECTION] = (metric or {}).get("higher_is_better")
        row[name + _SETTINGS] = (metric or {}).get("settings")
        if protocol := (metric or {}).get("protocol"):  # of a program elsewhere, with its versions
            row[name + _PROTOCOL] = digest(protocol)
        if shown := (metric or {}).get("shown"):
            row[name + _SHOWN] = shown
    for column, (field, unit) in COSTS.items():
        value = _number(cost.get(field))
        row[column] = None if value is None else value / unit
    seconds = {stage: float(value) for stage, value in (cost.get("seconds") or {}).items() if value is not None}
    row |= {f"seconds_{stage}": value for stage, value in seconds.items()}
    row["seconds"] = sum(seconds.values()) if seconds else None
    return row | {key: value for key, value in config.items() if key not in row}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Join the rows; columns of numbers are float with NaN, all others keep their values (20 must not become 20.0)."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    metrics = metric_names(columns)
    numeric = {name + suffix for name in metrics for suffix in METRIC_FIELDS.values()} | COSTS.keys()
    numeric |= {column for column in columns if column == "seconds" or column.startswith("seconds_")}
    return pd.DataFrame(
        {
            column: pd.Series([row.get(column) for row in rows], dtype=float if column in numeric else object)
            for column in columns
        }
    )


def _nothing_found(runs_dir: Path, study: str | None) -> str:
    where = runs_dir / study if study else runs_dir
    studies = sorted({path.parent.parent.name for path in runs_dir.glob("*/*/result.json")})
    if studies:
        return f"no readable result.json below {where}: the studies of {runs_dir} are {', '.join(studies)}"
    return (
        f"no readable result.json below {where} (looked for <study>/<run>/result.json): "
        "run `qdit` first, or name the right folder with --runs-dir"
    )
