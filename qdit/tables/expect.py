"""Compare a table with what is expected of it: a number of finished runs, or a CSV that was published earlier."""

import csv
import io
from collections.abc import Iterable
from math import hypot
from pathlib import Path

from qdit.errors import UserError
from qdit.tables.render import to_csv
from qdit.tables.summary import Summary

_EXACT = ("weight_bits", "model_mb")  # of the cost ledger these do not depend on the machine
_ROUNDING = 1e-6  # relative; what is computed without an error bar must come back the same

Line = dict[str, str]


def differences(summary: Summary, expected: str, tolerance: float | None = None) -> list[str]:
    """Return what differs from `expected`, one line each: a count of finished runs, or the path of an earlier CSV.

    A metric agrees within two combined standard errors, or, with `tolerance`, within that share of the old value.

    Raises:
        UserError: the file is missing, is no table of qdit-table, has other rows than this one could have, or a text
            where a number belongs.
    """
    if expected.isdigit():
        done = sum(run["status"] == "done" for run in summary.runs)
        return [] if done == int(expected) else [f"expected {expected} finished runs, found {done}"]
    old, keys = _read(Path(expected), summary.keys)
    new = {_key(line, keys): line for line in csv.DictReader(io.StringIO(to_csv(summary)))}
    found = []
    for line in old:
        key = _key(line, keys)
        name = " ".join(filter(None, key))
        if key not in new:
            found.append(f"{name}: the row is missing")
        elif line["protocol"] != new[key]["protocol"]:
            found.append(f"{name}: made under {new[key]['protocol']}, expected {line['protocol']}")
        else:
            found += [f"{name}: {text}" for text in _compare(line, new[key], tolerance)]
    return found


def _read(path: Path, keys: list[str]) -> tuple[list[Line], list[str]]:
    try:
        lines = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--expect {path}: cannot be read ({error}); name a CSV of qdit-table, or a number of runs"
        ) from None
    columns = list(lines[0]) if lines else []
    if "status" not in columns or "protocol" not in columns:
        raise UserError(f"--expect {path} is not a table of `qdit-table --format csv`")
    old_keys = columns[: columns.index("status")]
    if old_keys != keys:
        raise UserError(
            f"--expect {path} has a row for each {', '.join(old_keys)}, this table for each {', '.join(keys)}: "
            "use the --rows, --cols, --seeds and --where it was made with"
        )
    return lines, keys


def _compare(old: Line, new: Line, tolerance: float | None) -> Iterable[str]:
    metrics = [column.removesuffix("_stderr") for column in old if f"{column}_stderr" in old or column in _EXACT]
    for metric in metrics:
        before, after = _number(old, metric), _number(new, metric)
        if before is None:
            continue
        if after is None:
            yield f"{metric} is missing, expected {before:g}"
            continue
        errors = [_number(line, f"{metric}_stderr") for line in (old, new)]
        allowed = max(2 * hypot(*(error or 0.0 for error in errors)), _ROUNDING * abs(before))
        if tolerance is not None:
            allowed = tolerance * abs(before)
        if not abs(after - before) <= allowed:
            yield f"{metric} is {after:g}, expected {before:g} within {allowed:.2g}"


def _key(line: Line, keys: list[str]) -> tuple[str, ...]:
    return tuple(line[key] for key in keys)


def _number(line: Line, column: str) -> float | None:
    try:
        return float(line[column]) if line.get(column) else None
    except ValueError:
        raise UserError(
            f"--expect: {column} is {line[column]!r}, and a number is needed; write the CSV again"
        ) from None
