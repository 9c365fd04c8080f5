"""A table as Markdown, LaTeX (booktabs) or HTML; a summary as CSV, which is always long and made of plain numbers."""

import csv
import html
import io
from collections.abc import Callable

from tabulate import tabulate

from qdit.tables.build import Cell, Table
from qdit.tables.records import COSTS, METRIC_FIELDS
from qdit.tables.select import shown
from qdit.tables.summary import Summary

_LATEX = {"\\": r"\textbackslash{}", "—": "---", "±": r"$\pm$", "≈": r"$\approx$", "↑": r"$\uparrow$"}
_LATEX |= {
    "↓": r"$\downarrow$",
    "Δ": r"$\Delta$",
    "·": r"$\cdot$",
    "³": r"$^3$",
    "∞": r"$\infty$",
    "×": r"$\times$",
    "…": r"\dots{}",
}
_LATEX |= {character: f"\\{character}" for character in "_%&#${}"} | {"~": r"\textasciitilde{}", "^": r"\^{}"}


def render(table: Table, format: str) -> str:
    """Return the table as "markdown", "latex" or "html", with its footnotes and lines below."""
    return FORMATS[format](table)


def to_csv(summary: Summary) -> str:
    """Return one line a row of the summary: keys, status, protocol, each metric with its errors, the cost ledger.

    Numbers are plain and complete, a missing one is an empty field. With several seeds `X` is the mean, `X_stderr` the
    standard error of that mean and `X_std` the standard deviation over seeds.
    """
    columns = [*summary.keys, "status", "seeds", "protocol_id", "protocol"]
    columns += [name for key in ("quantizer", "bits", "seed") if (name := key) not in columns]
    for name in summary.metrics:
        columns += [name + suffix for suffix in METRIC_FIELDS.values()] + [f"{name}_std"]
    columns += [*COSTS, "seconds", "executed"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in summary.rows:
        writer.writerow("" if row.get(column) is None else _plain(row[column]) for column in columns)
    return text.getvalue()


def _plain(value: object) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return shown(value)


def _markdown(table: Table) -> str:
    def text(cell: Cell) -> str:
        marked = {"": "{}", "best": "**{}**", "tied": "{} ≈"}[cell.mark].format(cell.text.replace("|", "\\|"))
        return marked + "".join(f" [{note}]" for note in cell.notes)

    body = [[text(cell) for cell in line] for line in table.rows]
    align = ["left"] * table.n_keys + ["right"] * (len(table.header) - table.n_keys)
    grid = tabulate(body, table.header, tablefmt="pipe", disable_numparse=True, colalign=align)
    return "\n".join([grid, *(f"\n{line}" for line in _notes(table))]) + "\n"


def _latex(table: Table) -> str:
    def text(cell: Cell) -> str:
        marked = {"": "{}", "best": r"\textbf{{{}}}", "tied": r"{} $\approx$"}[cell.mark].format(_tex(cell.text))
        return marked + "".join(f"$^{{{note}}}$" for note in cell.notes)

    spec = "l" * table.n_keys + "r" * (len(table.header) - table.n_keys)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{spec}}}  % needs \usepackage{{booktabs}}",
            r"\toprule",
            " & ".join(map(_tex, table.header)) + r" \\",
            r"\midrule",
            *(" & ".join(map(text, line)) + r" \\" for line in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par{{\footnotesize {_tex(line)}}}" for line in _notes(table)),
        ]
    ) + "\n"  # fmt: skip


def _html(table: Table) -> str:
    def text(cell: Cell) -> str:
        plain = html.escape(cell.text)
        marked = {"": "{}", "best": "<b>{}</b>", "tied": "{} ≈"}[cell.mark].format(plain)
        return marked + "".join(f"<sup>{note}</sup>" for note in cell.notes)

    def line(cells: list[str], tag: str) -> str:
        align = ["left" if i < table.n_keys else "right" for i in range(len(cells))]
        inner = (f'<{tag} style="text-align:{a}">{c}</{tag}>' for a, c in zip(align, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    head = line([html.escape(name) for name in table.header], "th")
    body = "\n".join(line([text(cell) for cell in row], "td") for row in table.rows)
    notes = "".join(f"\n<p>{html.escape(note)}</p>" for note in _notes(table))
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>{notes}\n"


def _notes(table: Table) -> list[str]:
    return [*(f"[{i}] {note}" for i, note in enumerate(table.footnotes, 1)), *table.lines]


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": _markdown, "latex": _latex, "html": _html}
