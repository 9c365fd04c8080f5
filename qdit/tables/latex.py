"""A table as LaTeX that fits between the margins of an article: booktabs, and a float with caption and label each part.

A spread table comes as one `tabular` a quantity, a long one in as many as its width asks for; the key columns stand in
each. Values and their errors have a column each and meet at the ±, so that they line up without another package.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from qdit.storage.names import one_line
from qdit.tables.cells import Cell
from qdit.tables.layout import notes, spans
from qdit.tables.table import Table

LINE = 345.0
"""Width of a line of `article` at ten points, in points."""
_GAP = 8.0  # twice the \tabcolsep below
_SIZES = {**dict.fromkeys(" .,:;'|ijlt()[]", 3.0), **dict.fromkeys("mwMW±≈Δ↑↓ABCDEFGHKNOPQRSTUVXYZ", 7.0)}  # in \small
_CHARACTERS = {"\\": r"\textbackslash{}", "—": "---", "±": r"$\pm$", "≈": r"$\approx$", "↑": r"$\uparrow$"}
_CHARACTERS |= {
    **{"↓": r"$\downarrow$", "Δ": r"$\Delta$", "·": r"$\cdot$", "³": r"$^3$", "∞": r"$\infty$"},
    **{"×": r"$\times$", "…": r"\dots{}", "√": r"$\surd$", "~": r"\textasciitilde{}", "^": r"\^{}"},
    **{"<": "$<$", ">": "$>$", "≥": r"$\geq$", "≤": r"$\leq$", "η": r"$\eta$", "α": r"$\alpha$", "Σ": r"$\Sigma$"},
}
_CHARACTERS |= {character: f"\\{character}" for character in "_%&#${}"}
_PAIR = re.compile(r"(-?[\d.]+|-?∞) ± ([\d.]+)( .+)?")
_MINUS = re.compile(r"(?<![\w.])-(?=[\d∞])")


class Part(NamedTuple):
    """What one `tabular` shows: its quantity, empty in a long table, and its columns."""

    label: str
    columns: range


def latex(table: Table) -> str:
    """Return a float a part, each with the notes that belong to it; the document needs `\\usepackage{booktabs}`."""
    parts = list(_parts(table))
    labels = [_label(table.title, part.label) for part in parts]
    labels = [f"{label}-{at}" if labels.count(label) > 1 else label for at, label in enumerate(labels, 1)]
    return "\n\n".join(_float(table, part, label) for part, label in zip(parts, labels, strict=True)) + "\n"


def _parts(table: Table) -> Iterator[Part]:
    """The columns that go side by side: of one quantity, and no more than a line has room for."""
    groups = [(label, range(first, last)) for label, _, first, last in spans(table)]
    widths = [_width(table, at) for at in range(len(table.header))]
    keys = sum(widths[: table.n_keys])
    for label, columns in groups or [("", range(table.n_keys, len(table.header)))]:
        start, used = columns.start, keys
        for at in columns:
            if at > start and used + widths[at] > LINE:
                yield Part(label, range(start, at))
                start, used = at, keys
            used += widths[at]
        yield Part(label, range(start, columns.stop))


def _width(table: Table, at: int) -> float:
    """The width of a column in points, about."""
    texts = [_heads(table)[at], *(row[at].text + " ≈" * (row[at].mark == "tied") for row in table.rows)]
    return _GAP + max(sum(_SIZES.get(character, 4.8) for character in text) for text in texts)


def _heads(table: Table) -> list[str]:
    """The title of each column: of a spread table the values of its column key."""
    if not table.spans:
        return table.header
    keys = table.header[: table.n_keys]
    return [*keys, *[""] * (table.n_keys - len(keys)), *(value for _, values in table.spans for value in values)]


def _label(*parts: str) -> str:
    """The name by which a text refers to the table.

    >>> _label("methods", "SQNR (dB) ↑")
    'tab:methods-sqnr-db'
    """
    words = [re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts]
    return "tab:" + ("-".join(filter(None, words)) or "results")


def _float(table: Table, part: Part, label: str) -> str:
    """A float: caption, label, `tabular`, and what explains it."""
    study = f"study {table.title}" if table.title else ""
    caption = ", ".join(filter(None, [part.label, study])) or "Results"
    cited = {note for row in table.rows for at in (*range(table.n_keys), *part.columns) for note in row[at].notes}
    below = [line for at, line in enumerate(notes(table), 1) if at > len(table.footnotes) or at in cited]
    return "\n".join(
        [
            r"\begin{table}[tb]  % needs \usepackage{booktabs}",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{_tex(caption)}.}}",
            rf"\label{{{label}}}",
            *_tabular(table, part),
            *(rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize\raggedright {_tex(line)}}}" for line in below),
            r"\end{table}",
        ]
    )


def _tabular(table: Table, part: Part) -> Iterator[str]:
    """The `tabular` of a part. A column with errors is two, which meet at the ±."""
    pairs = {at for at in part.columns if any(_PAIR.fullmatch(row[at].text) for row in table.rows)}
    kinds = "".join(r"r@{\,}l" if at in pairs else "r" for at in part.columns)
    count = table.n_keys + len(part.columns) + len(pairs)
    yield rf"\begin{{tabular}}{{@{{}}{'l' * table.n_keys}{kinds}@{{}}}}"
    yield r"\toprule"
    if part.label:
        over = rf"\multicolumn{{{count - table.n_keys}}}{{c}}{{{_tex(part.label)}}} \\"
        yield " & " * table.n_keys + over
        yield rf"\cmidrule(l){{{table.n_keys + 1}-{count}}}"
    heads = _heads(table)
    titles = [
        rf"\multicolumn{{2}}{{c}}{{{_tex(heads[at])}}}" if at in pairs else _tex(heads[at]) for at in part.columns
    ]
    yield " & ".join([*map(_tex, heads[: table.n_keys]), *titles]) + r" \\"
    yield r"\midrule"
    for number, row in enumerate(table.rows):
        if number in table.sections:
            space = r"\addlinespace " if number else ""
            yield rf"{space}\multicolumn{{{count}}}{{@{{}}l@{{}}}}{{\emph{{{_tex(table.sections[number])}}}}} \\"
        cells = [
            *(_cell(row[at], False) for at in range(table.n_keys)),
            *(_cell(row[at], at in pairs) for at in part.columns),
        ]
        yield " & ".join(cells) + r" \\"
    yield from (r"\bottomrule", r"\end{tabular}")


def _cell(cell: Cell, pair: bool) -> str:
    """A cell, or the two of a value with its error; its marks stand behind."""
    marks = r" $\approx$" * (cell.mark == "tied") + "".join(f"$^{{{note}}}$" for note in cell.notes)
    bold = r"\textbf{{{}}}" if cell.mark == "best" else "{}"
    if not pair:
        return bold.format(_tex(cell.text)) + marks
    found = _PAIR.fullmatch(cell.text)
    if found is None:
        return rf"\multicolumn{{2}}{{c}}{{{bold.format(_tex(cell.text))}{marks}}}"
    value, error, behind = found.groups(default="")
    return f"{bold.format(_tex(value))} & $\\pm$ {bold.format(_tex(error))}{_tex(behind)}{marks}"


def _tex(text: str) -> str:
    plain = one_line(text)
    shown = "".join(_CHARACTERS.get(character, character) for character in plain)
    shown = _MINUS.sub("$-$", shown)
    return f"{{}}{shown}" if plain.startswith(("[", "*")) else shown  # after \\\\ these are its arguments
