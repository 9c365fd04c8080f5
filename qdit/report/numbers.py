"""The numbers of a page: columns, and rows of cells with what sorts them, their error bars and their marks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

from qdit.plots.charts import LOGARITHMIC, bar
from qdit.tables import families, select
from qdit.tables.cells import MISSING, UNCERTAIN, written
from qdit.tables.marks import Mark, judge
from qdit.tables.pareto import CHARGED, front_rows
from qdit.tables.quantity import Quantity, cost_quantity, stem
from qdit.tables.records import COSTS
from qdit.tables.summary import Summary
from qdit.tables.table import HEADLINE, choose_quantities

_SEEN = ("weight_bits", "input_bits", "model_mb")
"""Costs that are shown from the beginning; the others wait to be asked for, as metrics without a headline do."""


@dataclass(frozen=True)
class Column:
    """What a column shows, and whether from the beginning."""

    quantity: Quantity
    seen: bool
    is_metric: bool

    @property
    def logarithmic(self) -> bool:
        """Whether its axis is: of distances, which a method that fails multiplies."""
        return stem(self.quantity.column) in LOGARITHMIC and not self.quantity.is_delta


@dataclass(frozen=True)
class Shown:
    """A cell: its text without `n.s.`, its number as shown, its mark, and its error bar in percent of the cell."""

    text: str
    value: float | None
    mark: Mark | str = ""
    uncertain: bool = False
    span: tuple[float, float, float] | None = None
    """Left end, middle and right end."""


def columns(summary: Summary) -> list[Column]:
    """Every metric, every paired difference of one, and every cost that a row has."""
    found = []
    for each in choose_quantities(summary, ["all"]):
        headline = stem(each.column) in HEADLINE
        delta = summary.delta(each.column)
        found += [Column(each, headline, True), Column(delta, headline, True)]
    found += [Column(cost_quantity(name), name in _SEEN, False) for name in (*COSTS, "seconds_quantize", "seconds")]
    return [each for each in found if any(row.get(each.quantity.column) is not None for row in summary.rows)]


def cells(summary: Summary, shown: Sequence[Column]) -> dict[int, list[Shown]]:
    """The cells of each row, by `id` of the row; error bars share a scale in a column at the same bits."""
    marks = judge(summary, [each.quantity for each in shown], None).marks
    spans = {each.quantity.column: _spans(summary, each) for each in shown if each.is_metric}
    found = {}
    for row in summary.rows:
        found[id(row)] = [
            _cell(row, each.quantity, marks, spans.get(each.quantity.column, {}).get(id(row))) for each in shown
        ]
    return found


def _cell(row: select.Row, quantity: Quantity, marks: dict[tuple[int, str], Mark], span: Any) -> Shown:
    text, value = written(row, quantity), row.get(quantity.column)
    if text is None or value is None:
        return Shown(MISSING, None)
    uncertain = text.endswith(UNCERTAIN)
    mark = marks.get((id(row), quantity.column), "")
    return Shown(text.removesuffix(UNCERTAIN).strip(), value * quantity.factor, mark, uncertain, span)


def _spans(summary: Summary, column: Column) -> dict[int, tuple[float, float, float]]:
    """Ends and middle of the error bars, two standard errors to each side, in percent of what the same bits span."""
    groups: dict[str, dict[int, tuple[float, float, float]]] = defaultdict(dict)
    for row in summary.rows:
        value = row.get(column.quantity.column)
        if value is None or not isfinite(value) or row["quantizer"] == select.FULL_PRECISION:
            continue
        middle, half = value * column.quantity.factor, bar(row, column.quantity)
        ends = middle - half, middle, middle + half
        if not column.logarithmic:
            groups[row["bits"]][id(row)] = ends
        elif middle > 0:
            low, mid, high = (log(max(end, middle / 10)) for end in ends)
            groups[row["bits"]][id(row)] = low, mid, high
    found = {}
    for bars in groups.values():
        least, most = min(low for low, _, _ in bars.values()), max(high for _, _, high in bars.values())
        if len(bars) > 1 and most > least:
            for key, ends in bars.items():
                low, middle, high = (round(100 * (end - least) / (most - least), 1) for end in ends)
                found[key] = low, middle, high
    return found


def ordered(summary: Summary) -> list[select.Row]:
    """The rows as the table has them: full precision, then family by family, bits from high to low."""
    return sorted(
        summary.rows,
        key=lambda row: (row["quantizer"] != select.FULL_PRECISION, families.rank(row["family"])),
    )


def fronts(rows: Sequence[select.Row], shown: Sequence[Column]) -> dict[str, dict[str, list[int]]]:
    """The numbers of the rows on the Pareto front, by cost and metric, from cheap to dear."""
    return {
        cost: {each.quantity.column: front_rows(rows, cost, each.quantity) for each in shown if each.is_metric}
        for cost in CHARGED.values()
        if any(each.quantity.column == cost for each in shown)
    }


def failures(summary: Summary) -> list[select.Row]:
    """The runs that have no numbers, with the whole of their messages."""
    return [run for run in summary.runs if run["status"] != "done"]
