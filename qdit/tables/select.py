"""Select the runs of a table, and find what distinguishes its rows: conditions, protocols, differing config keys."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from qdit.errors import UserError, did_you_mean
from qdit.keys import RECIPE_KEYS

Row = dict[str, Any]
FULL_PRECISION = "fp"
_BASELINE = "rtn"  # round to nearest comes before the methods that are measured against it


def resolve(name: str, columns: Iterable[str]) -> str:
    """Return the column a user means by `name`: itself, or `<name>.name` for a config group.

    Raises:
        UserError: there is no such column.
    """
    columns = list(columns)
    for column in (name, f"{name}.name", f"{name}._target_"):
        if column in columns:
            return column
    raise UserError(f"no run has a column {name!r}{did_you_mean(name, columns)}: name a config key or a result")


def where(frame: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Keep the runs for which every `key=value` (or `key=value,value`) holds.

    Full precision stays as long as a run of its protocol and seed does: it is what that run is measured against.

    Raises:
        UserError: a condition is malformed, names no column, has a value that no run has, or nothing is left.
    """
    keep = pd.Series(True, index=frame.index)
    for condition in conditions:
        key, equals, values = condition.partition("=")
        if not equals:
            raise UserError(f"--where {condition}: write key=value, as in --where bits=w4a8 or sampler.steps=20,50")
        column = resolve(key.strip(), frame.columns)
        allowed = [value.strip() for value in values.split(",")]
        found = sorted({shown(cell) for cell in frame[column]})
        takes = f"{column} takes {', '.join(found[:12])}"
        absent = [value for value in allowed if not any(_matches(cell, [value]) for cell in frame[column])]
        if len(absent) == len(allowed):
            raise UserError(f"--where {condition} leaves no run; {takes}{did_you_mean(absent[0], found)}")
        if absent:
            raise UserError(f"--where {condition}: no run has {absent[0]!r}{did_you_mean(absent[0], found)}; {takes}")
        keep &= frame[column].map(partial(_matches, allowed=allowed)).astype(bool)
        if not keep.any():
            raise UserError(f"--where {condition} leaves no run of those that the conditions before it leave; {takes}")
    return _with_baseline(frame, keep)


def _with_baseline(frame: pd.DataFrame, keep: pd.Series) -> pd.DataFrame:
    """The runs that are kept, and full precision of their protocols and seeds."""
    rows = records(frame)
    needed = {
        (row["protocol_key"], row["seed"])
        for row, kept in zip(rows, keep, strict=True)
        if kept and row["quantizer"] != FULL_PRECISION
    }
    baseline = [row["quantizer"] == FULL_PRECISION and (row["protocol_key"], row["seed"]) in needed for row in rows]
    return frame.loc[keep | pd.Series(baseline, index=frame.index)]


def at_bits(frame: pd.DataFrame, span: str) -> pd.DataFrame:
    """Keep the runs whose quantized weights cost LOW to HIGH bits, with scales, zero points and branches.

    Full precision stays as in `where`.

    Raises:
        UserError: `span` is no LOW:HIGH, or nothing is left.
    """
    low, _, high = span.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        raise UserError(f"--at-bits {span}: write LOW:HIGH, as in --at-bits 4.4:4.6") from None
    bits = frame["weight_bits_quantized"]
    if not (kept := bits.between(*ends)).any():
        found = sorted({round(float(each), 2) for each in bits.dropna()})
        raise UserError(
            f"--at-bits {span} leaves no run; weights have {', '.join(map(str, found[:12])) or 'none'} bits"
        )
    return _with_baseline(frame, kept)


def records(frame: pd.DataFrame) -> list[Row]:
    """Return the rows of a frame as dictionaries, with None for whatever is missing, and with a `protocol_key`.

    The key is the protocol without its seed, for several seeds are one protocol. Where one text stands for several
    identifiers (the same model name with other weights, say) the identifier joins it. A run that failed before it had
    a protocol has None.
    """
    rows = [
        {str(key): None if _missing(value) else value for key, value in row.items()} for row in frame.to_dict("records")
    ]
    identifiers: dict[str | None, set[str | None]] = defaultdict(set)
    for row in rows:
        identifiers[row["protocol"]].add(row["protocol_id"])
    ambiguous = {_without_seed(text) for text, found in identifiers.items() if len(found) > 1}
    for row in rows:
        key = _without_seed(row["protocol"])
        row["protocol_key"] = f"{key}|id={row['protocol_id']}" if key and key in ambiguous else key
    return rows


def protocol_labels(rows: Iterable[Row]) -> dict[str, str]:
    """Return for each protocol the parts in which it differs from the others; an empty text where there is only one."""
    keys = sorted({key for row in rows if (key := row["protocol_key"]) is not None})
    common = set.intersection(*(set(key.split("|")) for key in keys)) if keys else set()
    return {key: ", ".join(part for part in key.split("|") if part not in common) for key in keys}


def refuse_mixture(rows: Sequence[Row]) -> None:
    """Raise a UserError that shows the differences if the runs were made under several protocols."""
    labels = protocol_labels(rows)
    if len(labels) < 2:
        return
    lines = []
    for key, label in labels.items():
        members = [row for row in rows if row["protocol_key"] == key]
        ids = ",".join(sorted({str(row["protocol_id"]) for row in members}))
        lines.append(f"  {label}  ({_count(len(members), 'run')}): --where protocol_id={ids}")
    raise UserError(
        f"{_count(len(rows), 'run')} of {len(labels)} protocols, whose numbers do not share a column; they differ in\n"
        + "\n".join(lines)
        + "\nKeep one with its --where, or show all, each under its own protocol, with --mix-protocols of qdit-table"
    )


def splitting_keys(rows: Iterable[Row], keys: Sequence[str], seeds: str) -> list[str]:
    """Return the keys of the recipe that tell apart runs which `keys` alone would average as if they were seeds.

    Names of options come first, then classes, then values; a key that an earlier one implies is left out. With seeds
    "mean" keys that end in `seed` never split.
    """
    cells: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["quantizer"] != FULL_PRECISION:
            cells[tuple(shown(row.get(key)) for key in keys)].append(row)
    candidates = sorted(
        {key for cell in cells.values() for row in cell for key in row if _is_recipe(key, seeds)},
        key=lambda key: (not key.endswith(".name"), not key.endswith("._target_"), key),
    )
    chosen: list[str] = []
    groups = list(cells.values())
    for key in candidates:
        split = [_split(group, key) for group in groups]
        if any(len(parts) > 1 for parts in split):
            chosen.append(key)
            groups = [part for parts in split for part in parts]
    return chosen


def sort_key(column: str, value: object) -> tuple[Any, ...]:
    """Return what a key column is sorted by: full precision, round to nearest, the rest; bits from high to low."""
    text = shown(value)
    if column in ("quantizer", "quantizer.name"):
        return (text != FULL_PRECISION, text != _BASELINE, text)
    if column in ("bits", "bits.name") and (match := re.fullmatch(r"w(\d+)a(\d+)", text)):
        return (0, -int(match[1]), -int(match[2]))
    number = value if isinstance(value, int | float) else None
    return (1, 0 if number is not None else 1, number or 0, text)


def shown(value: object) -> str:
    """Return a key's value as text: the class of a `_target_`, — where it is missing."""
    if _missing(value):
        return "—"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.rsplit(".", 1)[-1] if text.startswith("qdit.") else text


def _matches(cell: object, allowed: Sequence[str]) -> bool:
    if _missing(cell):
        return any(value in ("null", "—", "") for value in allowed)
    return any(value in (str(cell), shown(cell)) or _same_number(cell, value) for value in allowed)


def _same_number(cell: object, text: str) -> bool:
    try:
        return isinstance(cell, int | float) and float(text) == float(cell)
    except ValueError:
        return False


def _without_seed(protocol: str | None) -> str | None:
    return protocol and "|".join(part for part in protocol.split("|") if not part.startswith("seed="))


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_recipe(key: str, seeds: str) -> bool:
    return key.split(".")[0] in RECIPE_KEYS and not (seeds == "mean" and key.endswith("seed"))


def _split(group: list[Row], key: str) -> list[list[Row]]:
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in group:
        parts[shown(row.get(key))].append(row)
    return list(parts.values())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
