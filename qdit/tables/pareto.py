"""The Pareto front of a study, and the smallest model on it that reaches a quality. For figures, pages, `qdit-pick`.

A number is an estimate: a row that clears a bar by less than two standard errors may lie below it on other noise, and
one that misses it by less may lie above. Both are told, and neither is decided for the reader.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np
from numpy.typing import NDArray

from qdit.errors import UserError
from qdit.tables import select
from qdit.tables.quantity import Quantity, cost_quantity, show
from qdit.tables.summary import Summary
from qdit.tables.table import choose_quantities

CHARGED = {"bits": "weight_bits", "bytes": "model_mb", "bitops": "gbops"}
"""What a model is charged for → the column of the cost ledger."""


def front(points: NDArray[np.float64], higher: bool | None) -> list[int]:
    """Return which points [m, 2] no other beats in both cost and quality, by rising cost; none without a direction."""
    kept: list[int] = []
    if higher is None:  # neither the highest nor the lowest value is the best
        return kept
    sign = 1 if higher else -1
    for number in sorted(range(len(points)), key=lambda n: (points[n, 0], -sign * points[n, 1])):
        if not kept or sign * points[number, 1] > sign * points[kept[-1], 1]:
            kept.append(number)
    return kept


def front_rows(rows: Sequence[select.Row], cost: str, quantity: Quantity) -> list[int]:
    """The numbers of the quantized rows on the front of a column of costs and a metric, from cheap to dear.

    A metric of which neither more nor less is better has no front.
    """
    drawn = [
        (number, row[cost], row[quantity.column])
        for number, row in enumerate(rows)
        if None not in (row.get(cost), row.get(quantity.column))
        and isfinite(row[quantity.column])
        and row["quantizer"] != select.FULL_PRECISION
    ]
    points = np.array([point for _, *point in drawn], dtype=float).reshape(-1, 2)
    return [drawn[place][0] for place in front(points, quantity.higher_is_better)]


@dataclass(frozen=True)
class Bar:
    """What a model has to reach: at least, or at most, a value of a metric, in the unit of tables."""

    quantity: Quantity
    value: float
    least: bool

    def margin(self, row: select.Row) -> float:
        """How far a row is on the right side, in the table's unit; negative where it misses, NaN where unmeasured."""
        found = row.get(self.quantity.column)
        if found is None:
            return float("nan")
        return (1 if self.least else -1) * (found * self.quantity.factor - self.value)

    def doubt(self, row: select.Row) -> float | None:
        """Two standard errors of a row, in the table's unit; None where it has no error."""
        error = row.get(f"{self.quantity.column}_stderr")
        return None if error is None else 2 * error * self.quantity.factor

    def clears(self, row: select.Row) -> bool:
        """Whether a row is on the right side by two standard errors."""
        doubt = self.doubt(row)
        return doubt is not None and self.margin(row) >= doubt

    def near(self, row: select.Row) -> bool:
        """Whether a row misses by less than two standard errors."""
        return -(self.doubt(row) or 0.0) < self.margin(row) < 0

    def __str__(self) -> str:
        return f"{self.quantity.column} {'≥' if self.least else '≤'} {self.value:g}"


@dataclass(frozen=True)
class Picked:
    """The smallest row that reaches every bar, and what its error bars leave open."""

    row: select.Row
    sure: select.Row | None
    """The smallest that clears every bar by two standard errors: `row` itself, a larger one, or none."""
    near: list[select.Row]
    """Smaller ones that miss by less than two standard errors, from small to large."""


def bars_of(summary: Summary, least: Sequence[str], most: Sequence[str]) -> list[Bar]:
    """The bars of a command line: `--min sqnr=20`, `--max fid_lite0=300`.

    Raises:
        UserError: a word is no NAME=NUMBER, names no metric or several, or asks for the worse side of one.
    """
    found = []
    for option, words in (("--min", least), ("--max", most)):
        for word in words:
            name, _, text = word.partition("=")
            try:
                value = float(text)
            except ValueError:
                value = nan
            if not isfinite(value):
                raise UserError(f"{option} {word}: write METRIC=NUMBER, as in {option} sqnr=20")
            quantities = choose_quantities(summary, [name])
            if len(quantities) > 1:
                columns = ", ".join(each.column for each in quantities)
                raise UserError(f"{option} {word}: {name} was computed with several settings; name one of {columns}")
            found.append(_bar(quantities[0], value, option))
    if not found:
        raise UserError("no quality is asked for: give --min METRIC=NUMBER, as in --min sqnr=20, or --max")
    return found


def _bar(quantity: Quantity, value: float, option: str) -> Bar:
    other = "--max" if option == "--min" else "--min"
    if quantity.higher_is_better is (option == "--max"):
        better = "higher" if quantity.higher_is_better else "lower"
        raise UserError(f"{option} {quantity.column}={value:g}: {better} is better; write {other} instead")
    return Bar(quantity, value, option == "--min")


def pick(summary: Summary, bars: Sequence[Bar], cost: str) -> Picked:
    """The quantized row of least cost that reaches every bar; of several that cost the same, the best by the first.

    Args:
        summary: of a study, under one protocol.
        bars: at least one.
        cost: a column of the cost ledger.

    Raises:
        UserError: no row has this cost, or none reaches all bars; the nearest is named.
    """
    rows = [row for row in summary.rows if row["quantizer"] != select.FULL_PRECISION and row.get(cost) is not None]
    if not rows:
        raise UserError(
            f"no quantized run of these has {cost_quantity(cost).label}, so that none is the smallest by it"
        )
    rows.sort(key=lambda row: (row[cost], -_finite(bars[0].margin(row))))
    reaching = [row for row in rows if all(bar.margin(row) >= 0 for bar in bars)]
    if not reaching:
        raise UserError(_none_reaches(rows, bars))
    row = reaching[0]
    sure = next((each for each in reaching if all(bar.clears(each) for bar in bars)), None)
    smaller = rows[: rows.index(row)]
    near = [each for each in smaller if all(bar.margin(each) >= 0 or bar.near(each) for bar in bars)]
    return Picked(row, sure, near)


def _none_reaches(rows: Sequence[select.Row], bars: Sequence[Bar]) -> str:
    asked = " and ".join(map(str, bars))
    lines = [f"none of the {len(rows)} quantized rows has {asked}"]
    for bar in bars:
        measured = [row for row in rows if bar.margin(row) == bar.margin(row)]
        if not measured:
            lines.append(f"none of them measured {bar.quantity.column}: add it with eval={bar.quantity.column}")
            continue
        best = max(measured, key=bar.margin)
        value = show(best[bar.quantity.column], best.get(f"{bar.quantity.column}_stderr"), bar.quantity)
        lines.append(f"the best {bar.quantity.label} is {value}, of {best['quantizer']} {select.shown(best['bits'])}")
    return "; ".join([*lines, "ask for less, or add runs with more bits to the study"])


def _finite(value: float) -> float:
    return value if value == value else float("-inf")
