"""Runs → rows of a table: settles the key columns, then averages the seeds of each row.

The standard error of a mean over k seeds is the larger of std/√k and the runs' own error/√k, because two seeds that
happen to agree must not look exact. Seeds that share their prompts share most of their own error, which is then taken
whole. Runs that differ in their calibration seed share the evaluated noise, and so their own error, which averaging
does not reduce: it is added to std/√k.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import hypot
from textwrap import shorten
from typing import Any, Literal

import numpy as np
import pandas as pd

from qdit.errors import UserError
from qdit.tables import select
from qdit.tables.duplicates import unique_runs
from qdit.tables.families import KEY
from qdit.tables.quantity import Quantity, delta_quantity, metric_quantity
from qdit.tables.records import COSTS, metric_names, settings_apart

Seeds = Literal["mean", "all"]
ROWS = ("quantizer", "bits")  # the keys of a study's rows, in figures, pages and lists
PROTOCOL = "protocol difference"  # the key column of a table that mixes protocols


@dataclass(frozen=True)
class Summary:
    """Rows of a table, told apart by `keys`, with metrics, costs and status; `runs` are what they came from.

    A row has its `family` and its own finished `runs`.

    A metric X has X (mean over seeds), `X_std` (over seeds, None for one), `X_stderr` (of the mean), `X_n`, `X_delta`,
    `X_delta_stderr`. `metrics` maps each metric to its higher_is_better.
    """

    keys: list[str]
    rows: list[select.Row]
    runs: list[select.Row]
    metrics: dict[str, bool | None]
    shown: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """How metrics are printed whose records say so."""

    def quantity(self, metric: str) -> Quantity:
        """How a metric is shown."""
        return metric_quantity(metric, self.metrics[metric], self.shown.get(metric))

    def delta(self, metric: str) -> Quantity:
        """How its paired difference to full precision is shown."""
        return delta_quantity(metric, self.metrics[metric], self.shown.get(metric))


def summarise(
    frame: pd.DataFrame, keys: Sequence[str], *, seeds: Seeds = "mean", mix_protocols: bool = False
) -> Summary:
    """Return one row for each value of `keys`, adding whatever config key tells different runs apart.

    Raises:
        UserError: a key names no column, or the runs mix protocols (or sample counts) without `mix_protocols`.
    """
    runs = unique_runs(select.records(frame))
    names = metric_names(frame.columns)
    keys = [select.resolve(key, frame.columns) for key in keys]
    if mix_protocols:
        labels = select.protocol_labels(runs)
        runs = [run | {PROTOCOL: labels.get(run["protocol_key"] or "")} for run in runs]
        keys = keys if _tell_protocols_apart(runs, keys) else [PROTOCOL, *keys]
    else:
        select.refuse_mixture(runs)
        _refuse_sample_counts(runs, names)
    runs, names = settings_apart(runs, names)
    metrics = {name: _direction(runs, name) for name in names}
    if seeds == "all":
        keys = [*keys, "seed"]
    extra = select.splitting_keys(runs, keys, seeds)
    groups: dict[tuple[str, ...], list[select.Row]] = defaultdict(list)
    for run in runs:
        if run["quantizer"] == select.FULL_PRECISION:  # whatever recipe stands in its config, it was not used
            run |= dict.fromkeys(extra)
        groups[tuple(select.shown(run.get(key)) for key in [*keys, *extra])].append(run)
    keys = [*keys, *extra]
    rows = [_mean(group, keys, metrics) for group in groups.values()]
    rows.sort(key=lambda row: _order(row, keys))
    said = {name: next((run[key] for run in runs if run.get(key)), None) for name in names if (key := f"{name}_shown")}
    shown = {name: found for name, found in said.items() if found}
    return Summary(keys=keys, rows=rows, runs=runs, metrics=metrics, shown=shown)


def names_of(summary: Summary, rows: Sequence[select.Row]) -> dict[int, str]:
    """What the methods of rows are called, by `id` of the row: the quantizer, and what tells it from its namesakes."""
    extra = [key for key in summary.keys if key not in ROWS and key.split(".")[0] not in ROWS]
    return {
        id(row): " ".join(
            [select.shown(row["quantizer"]), *(select.shown(row[key]) for key in extra if row[key] is not None)]
        )
        for row in rows
    }


def _tell_protocols_apart(runs: list[select.Row], keys: Sequence[str]) -> bool:
    """Say whether the key columns other than the method's show under which protocol a row was made."""
    context = [key for key in keys if key.split(".")[0] not in ("quantizer", "bits", "seed")]
    seen: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for run in runs:
        if (protocol := run["protocol_key"]) is not None:
            seen[tuple(select.shown(run.get(key)) for key in context)].add(protocol)
    return all(len(protocols) == 1 for protocols in seen.values())


def _order(row: select.Row, keys: Sequence[str]) -> list[tuple[Any, ...]]:
    """Protocol first, then full precision before everything, then the keys as they stand."""
    protocol = (row.get(PROTOCOL) or "",)
    return [protocol, (row["quantizer"] != select.FULL_PRECISION,), *(select.sort_key(k, row[k]) for k in keys)]


def _mean(group: list[select.Row], keys: Sequence[str], metrics: dict[str, bool | None]) -> select.Row:
    first, done = group[0], [run for run in group if run["status"] == "done"]
    row: select.Row = {"quantizer": first["quantizer"], "bits": first["bits"], "dataset": first.get("dataset.name")}
    row |= {key: first.get(key) for key in keys}
    row |= {
        "status": "done" if len(done) == len(group) else "failed" if not done else "partly failed",
        "errors": [f"{_name(run)}: {_one_line(run['error'])}" for run in group if run["status"] != "done"],
        "seeds": len(done),
        "seed": ", ".join(sorted({select.shown(run["seed"]) for run in group})) if len(group) > 1 else first["seed"],
        **{key: first[key] for key in ("protocol", "protocol_id", "protocol_key")},
        "executed": (done or group)[0]["executed"],
        "family": next((run[KEY] for run in group if run.get(KEY) is not None), None),
        "runs": done,
    }
    for name in metrics:
        row |= _metric(done, name)
    seconds = {key for run in done for key in run if key == "seconds" or key.startswith("seconds_")}
    for column in [*COSTS, *sorted(seconds)]:
        values = _values(done, column)
        row[column] = float(np.mean(values)) if values else None
    return row


def _metric(runs: list[select.Row], name: str) -> dict[str, float | None]:
    """Mean, error and spread of a metric over the runs that have it."""
    runs = [run for run in runs if run.get(name) is not None]
    values, deltas = _values(runs, name), _values(runs, f"{name}_delta")
    counts, noises = _values(runs, f"{name}_n"), len({run["seed"] for run in runs})
    prompts = any(run.get("dataset.file") for run in runs)
    error = partial(_error_of_mean, noises=noises, shared=prompts)
    return {
        name: float(np.mean(values)) if values else None,
        f"{name}_stderr": error(values, _values(runs, f"{name}_stderr")),
        f"{name}_std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        f"{name}_n": counts[0] if counts else None,
        f"{name}_delta": float(np.mean(deltas)) if deltas else None,
        f"{name}_delta_stderr": error(deltas, _values(runs, f"{name}_delta_stderr")),
    }


def _error_of_mean(values: list[float], errors: list[float], *, noises: int, shared: bool = False) -> float | None:
    """Return the standard error of the mean of runs, each with its own.

    Args:
        values, errors: of the runs.
        noises: seeds of the evaluated noise.
        shared: whether they have the same prompts, whose part of the runs' own error is the same in all.
    """
    if len(values) < 2:
        return errors[0] if errors else None
    own = float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0
    spread = float(np.std(values, ddof=1))
    own, spread = own / (1 if shared else noises) ** 0.5, spread / len(values) ** 0.5
    return hypot(own, spread) if noises < len(values) else max(own, spread)


def _values(runs: list[select.Row], column: str) -> list[float]:
    return [float(run[column]) for run in runs if run.get(column) is not None]


def _direction(runs: list[select.Row], name: str) -> bool | None:
    found: list[Any] = [run.get(f"{name}_higher_is_better") for run in runs]
    return next((direction for direction in found if direction is not None), None)


def _refuse_sample_counts(runs: list[select.Row], metrics: Sequence[str]) -> None:
    """Refuse values of different numbers of samples; a metric may judge fewer than were drawn, such as still clips."""
    for name in metrics:
        told = [(run.get(f"{name}_n"), run.get("num_samples")) for run in runs]
        counts = sorted({max(int(n), int(drawn or 0)) for n, drawn in told if n is not None})
        if len(counts) > 1:
            raise UserError(
                f"{name} was computed from {' and from '.join(map(str, counts))} samples, and such numbers do not "
                f"share a column: keep one with --where {name}_n={counts[-1]}, or show all with --mix-protocols of "
                "qdit-table"
            )


def _name(run: select.Row) -> str:
    return f"{run['name'] or run['quantizer']}, seed {select.shown(run['seed'])}"


def _one_line(error: str | None) -> str:
    lines = (error or "no error was recorded").strip().splitlines()
    kept = lines[-1:] if lines[0].startswith("Traceback") else lines
    return shorten(" ".join(kept), 240, placeholder=" …")
