"""Which values of a table are best, and which cannot be told from the best.

Best means best among the quantized runs of the same bits, protocol and (with seeds "all") seed: that is the comparison
a reader makes. A value is marked as tied when its difference to the best is below two standard errors of that
difference. Where both have a paired difference to full precision, these are compared: what the two share cancels in
them, and so does the luck of a seed that only one of them was run with. Where an error is missing nothing is tied.
"""

from collections import defaultdict
from collections.abc import Iterable
from math import hypot
from typing import Literal

from qdit.tables import select
from qdit.tables.quantity import Quantity
from qdit.tables.summary import Summary

Mark = Literal["best", "tied"]
Marks = dict[tuple[int, str], Mark]


def judge(summary: Summary, quantities: Iterable[Quantity], column_key: str | None) -> Marks:
    """Return the marks of the rows (by `id`) and columns; a value without a rival gets none."""
    marks: Marks = {}
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
                marks |= {(id(row), quantity.column): mark for row, mark in _contest(contest, quantity)}
    return marks


def _contest(contest: list[select.Row], quantity: Quantity) -> list[tuple[select.Row, Mark]]:
    sign = 1 if quantity.higher_is_better else -1
    best = max(contest, key=lambda row: sign * row[quantity.column])
    judged: list[tuple[select.Row, Mark]] = []
    for row in contest:
        if row[quantity.column] == best[quantity.column]:
            judged.append((row, "best"))
        elif _indistinguishable(row, best, quantity.column):
            judged.append((row, "tied"))
    return judged


def _indistinguishable(row: select.Row, best: select.Row, column: str) -> bool:
    """Say whether the difference, paired if it can be, is below two of its standard errors."""
    for value in (f"{column}_delta", column):
        error = f"{value}_stderr"
        if all(each.get(key) is not None for each in (row, best) for key in (value, error)):
            return abs(row[value] - best[value]) < 2 * hypot(row[error], best[error])
    return False
