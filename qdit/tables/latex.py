"""A table as LaTeX with booktabs: quantities over their columns, families under titles, a wide table in parts."""

from collections.abc import Iterator, Sequence

from qdit.storage.names import one_line
from qdit.tables.layout import notes, spans
from qdit.tables.table import Cell, Table

WIDE = 8  # columns of numbers that fit between the margins of a page
_CHARACTERS = {"\\": r"\textbackslash{}", "—": "---", "±": r"$\pm$", "≈": r"$\approx$", "↑": r"$\uparrow$"}
_CHARACTERS |= {
    **{"↓": r"$\downarrow$", "Δ": r"$\Delta$", "·": r"$\cdot$", "³": r"$^3$", "∞": r"$\infty$"},
    **{"×": r"$\times$", "…": r"\dots{}", "√": r"$\surd$", "~": r"\textasciitilde{}", "^": r"\^{}"},
    **{"<": "$<$", ">": "$>$"},
}
_CHARACTERS |= {character: f"\\{character}" for character in "_%&#${}"}

Head = tuple[str, list[str]]


def latex(table: Table) -> str:
    """Return `tabular`s and the notes below; a table wider than a page comes in parts, a few quantities each."""
    parts: list[str] = []
    if not table.spans:
        parts.append(_tabular(table, [(name, []) for name in table.header[table.n_keys :]], table.n_keys))
    for first, heads in _parts(table):
        parts.append(_tabular(table, heads, first))
    below = [rf"\par{{\footnotesize {_tex(line)}}}" for line in notes(table)]
    return "\n".join(["\n\n\\medskip\n".join(parts), *below]) + "\n"


def _parts(table: Table) -> Iterator[tuple[int, list[Head]]]:
    """The quantities that go side by side: their first column and heads."""
    heads: list[Head] = []
    start = end = table.n_keys
    for label, values, first, last in spans(table):
        if heads and last - start > WIDE:
            yield start, heads
            heads, start = [], first
        heads.append((label, values))
        end = last
    if end > start:
        yield start, heads


def _tabular(table: Table, heads: Sequence[Head], start: int) -> str:
    """One `tabular` of the columns from `start` on, as many as `heads` name."""
    count = sum(max(1, len(values)) for _, values in heads)
    columns = (*range(table.n_keys), *range(start, start + count))
    lines = [
        rf"\begin{{tabular}}{{{'l' * table.n_keys + 'r' * count}}}  % needs \usepackage{{booktabs}}",
        r"\toprule",
        *_head(table, heads),
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        if number in table.sections:
            space = [] if number == 0 else [r"\addlinespace"]
            lines += [*space, rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{_tex(table.sections[number])}}}}} \\"]
        lines.append(" & ".join(_text(row[at]) for at in columns) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _head(table: Table, heads: Sequence[Head]) -> list[str]:
    """One row of titles; in a spread table the quantities with rules under them, and then the values."""
    keys = [_tex(name) for name in table.header[: table.n_keys]]
    if not table.spans:
        return [" & ".join([*keys, *(_tex(name) for name, _ in heads)]) + r" \\"]
    over, rules, at = [""] * table.n_keys, [], table.n_keys
    for name, values in heads:
        over.append(rf"\multicolumn{{{len(values)}}}{{c}}{{{_tex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{at + 1}-{at + len(values)}}}")
        at += len(values)
    under = [*keys, *(_tex(value) for _, values in heads for value in values)]
    return [" & ".join(over) + r" \\", "".join(rules), " & ".join(under) + r" \\"]


def _text(cell: Cell) -> str:
    marked = {"": "{}", "best": r"\textbf{{{}}}", "tied": r"{} $\approx$"}[cell.mark].format(_tex(cell.text))
    return marked + "".join(f"$^{{{note}}}$" for note in cell.notes)


def _tex(text: str) -> str:
    plain = one_line(text)
    shown = "".join(_CHARACTERS.get(character, character) for character in plain)
    return f"{{}}{shown}" if plain.startswith(("[", "*")) else shown  # after \\ these are its arguments
