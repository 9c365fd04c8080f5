"""Which values of a table are best, and which cannot be told from the best.

Best means best among the quantized runs of the same bits, protocol and (with seeds "all") seed: that is the comparison
a reader makes. A value is marked as tied when its difference to the best is below two standard errors of that
difference, by the sharpest comparison that both allow (`BASES`):

samples     paired metrics whose values of single samples were kept: the mean difference sample by sample;
differences both have a paired difference to full precision: these are compared, as if independent. What the two share
            cancels in them, and so does the luck of a seed that only one of them was run with;
values      the values themselves, as if independent.

Where an error is missing nothing is tied.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import hypot
from typing import Literal

from qdit.tables import select
from qdit.tables.differences import difference
from qdit.tables.quantity import Quantity
from qdit.tables.summary import Summary

Mark = Literal["best", "tied"]
Basis = Literal["samples", "differences", "values"]
BASES: dict[Basis, str] = {
    "samples": "of the difference sample by sample",
    "differences": "of the differences to full precision, as if independent",
    "values": "of the values, as if independent",
}


@dataclass(frozen=True)
class Verdict:
    """What was judged of a table."""

    marks: dict[tuple[int, str], Mark] = field(default_factory=dict)
    """By `id` of the row, and column; a value without a rival has none."""
    bases: dict[Basis, set[str]] = field(default_factory=dict)
    """The columns in which values were compared with the best on each basis."""


def judge(summary: Summary, quantities: Iterable[Quantity], column_key: str | None) -> Verdict:
    """Return the marks of the rows and columns, and how they were found."""
    verdict = Verdict()
    for quantity in quantities:
        if quantity.higher_is_better is None:
            continue
        contests: dict[tuple[object, ...], list[select.Row]] = defaultdict(list)
        for row in summary.rows:
            if row["quantizer"] != select.FULL_PRECISION and row.get(quantity.column) is not None:
                seed = row["seed"] if "seed" in summary.keys else None
                column = select.shown(row[column_key]) if column_key else None
                contests[(row["protocol_key"], row["bits"], column, seed)].append(row)
        for contest in contests.values():
            if len(contest) > 1:
                _contest(contest, quantity, verdict)
    return verdict


def _contest(contest: list[select.Row], quantity: Quantity, verdict: Verdict) -> None:
    sign = 1 if quantity.higher_is_better else -1
    best = max(contest, key=lambda row: sign * row[quantity.column])
    for row in contest:
        if row[quantity.column] == best[quantity.column]:
            verdict.marks[(id(row), quantity.column)] = "best"
        elif (compared := _compare(row, best, quantity)) is not None:
            basis, gap, error = compared
            verdict.bases.setdefault(basis, set()).add(quantity.column)
            if sign * gap > -2 * error:  # on the noise that both have a row may lead the one with the best mean
                verdict.marks[(id(row), quantity.column)] = "tied"


def _compare(row: select.Row, best: select.Row, quantity: Quantity) -> tuple[Basis, float, float] | None:
    """Return how two values were compared, their difference and its standard error; None where an error is missing."""
    column = quantity.column
    if not quantity.is_delta and (found := difference(row["runs"], best["runs"], column)) is not None:
        return "samples", *found
    bases: dict[Basis, str] = {"differences": f"{column}_delta", "values": column}
    if quantity.is_delta:
        bases = {"differences": column}
    for basis, value in bases.items():
        error = f"{value}_stderr"
        if all(each.get(key) is not None for each in (row, best) for key in (value, error)):
            return basis, row[value] - best[value], hypot(row[error], best[error])
    return None
