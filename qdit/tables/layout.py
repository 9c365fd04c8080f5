"""What the formats of a table share: its notes, and its columns by what they show."""

from collections.abc import Iterator

from qdit.tables.table import Table


def notes(table: Table) -> list[str]:
    """Return the lines below the table, footnotes first."""
    return [*(f"[{i}] {note}" for i, note in enumerate(table.footnotes, 1)), *table.lines]


def spans(table: Table) -> Iterator[tuple[str, list[str], int, int]]:
    """Yield label and values of each quantity of a spread table, its first column and the one behind its last."""
    first = table.n_keys
    for label, values in table.spans:
        yield label, values, first, first + len(values)
        first += len(values)
