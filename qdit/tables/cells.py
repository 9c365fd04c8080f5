"""The cells of a table: a value with its error and marks, and the footnotes that explain what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qdit.tables import select
from qdit.tables.marks import Mark
from qdit.tables.quantity import Quantity, show
from qdit.tables.summary import Summary

MISSING = "—"
UNCERTAIN = "n.s."
Column = tuple[Quantity, str | None]  # what is shown, and for which value of the column key


@dataclass(frozen=True)
class Cell:
    """What is printed in one place: text, a mark, and the numbers of the footnotes that explain it."""

    text: str
    mark: Literal["", "best", "tied"] = ""
    notes: tuple[int, ...] = ()


def cell(
    summary: Summary,
    members: list[select.Row],
    column: Column,
    column_key: str | None,
    marks: Mapping[tuple[int, str], Mark],
    footnotes: list[str],
) -> Cell:
    """What stands in a line, whose rows of the summary are `members`, under a column."""
    quantity, value = column
    row = members[0] if value is None else _at(summary, members, column_key or "", value)
    if row is None:
        return Cell(MISSING)
    if quantity.column == "executed":
        return Cell(row["executed"] or MISSING)
    is_cost = quantity.column not in summary.metrics and not quantity.is_delta
    told = not is_cost or not summary.metrics  # where every run failed there are costs alone
    notes = () if not told else tuple(_note(footnotes, error) for error in row["errors"])
    if (text := written(row, quantity)) is None:
        return Cell(MISSING, notes=notes)
    return Cell(text, marks.get((id(row), quantity.column), ""), notes)


def written(row: select.Row, quantity: Quantity) -> str | None:
    """A value of a summary's row with what stands behind it: its standard error, `n.s.`; None where it is missing."""
    number = row.get(quantity.column)
    if number is None:
        return None
    error = row.get(f"{quantity.column}_stderr")
    text = show(number, error, quantity)
    return f"{text} {UNCERTAIN}" if quantity.is_delta and error is not None and abs(number) < 2 * error else text


def _at(summary: Summary, members: list[select.Row], column_key: str, value: str) -> select.Row | None:
    """Return the member that stands in a column; full precision stands in every column of its protocol."""
    if members[0]["quantizer"] != select.FULL_PRECISION:
        return next((row for row in members if select.shown(row[column_key]) == value), None)
    protocols = {row["protocol_key"] for row in summary.rows if select.shown(row[column_key]) == value}
    return next((row for row in members if row["protocol_key"] in protocols), None)


def _note(footnotes: list[str], text: str) -> int:
    if text not in footnotes:
        footnotes.append(text)
    return footnotes.index(text) + 1
