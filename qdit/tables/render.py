"""A table as Markdown, LaTeX (booktabs) or HTML; a summary as CSV or Parquet, always long and of plain numbers."""

import csv
import html
import io
import re
from collections.abc import Callable, Sequence

import pandas as pd
from tabulate import tabulate

from qdit.errors import UserError
from qdit.storage.names import one_line
from qdit.tables.cells import Cell
from qdit.tables.latex import latex
from qdit.tables.layout import notes, spans
from qdit.tables.quantity import Quantity
from qdit.tables.records import COSTS, METRIC_FIELDS
from qdit.tables.select import shown
from qdit.tables.summary import Summary
from qdit.tables.table import Table

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_HARMFUL = re.compile(r"[|<*\\]|&(?=#?\w+;)|(?<=\])\(")
NARROW = 9  # columns of numbers that still read well side by side; a wider Markdown table is one table a quantity


_CELL = "white-space:nowrap;padding:0.2em 0.7em"  # styles of their own, for mails and issues keep no style sheet
_SECTION = "padding:0.7em 0.7em 0.2em;font-style:italic"
_RULES = "border-collapse:collapse;border-top:2px solid;border-bottom:2px solid;font-variant-numeric:tabular-nums"


def render(table: Table, format: str) -> str:
    """Return the table as "markdown", "latex" or "html", with its footnotes and lines below."""
    return FORMATS[format](table)


def to_csv(summary: Summary, quantities: Sequence[Quantity] | None = None) -> str:
    """Return one line per row of the summary: keys, status, protocol, each metric with its errors, the cost ledger.

    Of `quantities` the metrics alone are written, in their order, each with its differences to full precision, too; the
    ledger stays. Numbers are plain and complete, a missing one is an empty field. With several seeds `X` is the mean,
    `X_stderr` the standard error of that mean and `X_std` the standard deviation over seeds.
    """
    columns = [*_texts(summary), *_numbers(summary, quantities), "executed"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(in_csv, columns))
    for row in summary.rows:
        writer.writerow("" if row.get(column) is None else _plain(row[column]) for column in columns)
    return text.getvalue()


def to_parquet(summary: Summary, quantities: Sequence[Quantity] | None = None) -> bytes:
    """Return the rows and columns of `to_csv` as a Parquet file: numbers as numbers, the rest as text, gaps as null.

    Raises:
        UserError: pandas finds nothing that writes Parquet.
    """
    texts = {
        name: [None if row.get(name) is None else shown(row[name]) for row in summary.rows]
        for name in (*_texts(summary), "executed")
    }
    measured = _numbers(summary, quantities)
    numbers = {name: pd.Series([row.get(name) for row in summary.rows], dtype=float) for name in measured}
    try:
        return pd.DataFrame(texts | numbers).to_parquet(index=False)
    except ImportError as error:
        raise UserError("Parquet is written by pyarrow, which is not installed: pip install 'qdit[parquet]'") from error


def _texts(summary: Summary) -> list[str]:
    """The columns of a summary that say what a row is."""
    keys = [*summary.keys, "status", "seeds", "protocol_id", "protocol"]
    return [*keys, *(key for key in ("quantizer", "bits", "seed") if key not in keys)]


def _numbers(summary: Summary, quantities: Sequence[Quantity] | None) -> list[str]:
    """The columns of a summary that are measured: of all metrics, or of some."""
    suffixes = [*METRIC_FIELDS.values(), "_std"]
    metrics, costs = list(summary.metrics), [*COSTS, "seconds"]
    if quantities is not None:
        asked = [each.column.removesuffix("_delta") if each.is_delta else each.column for each in quantities]
        metrics = [name for name in dict.fromkeys(asked) if name in summary.metrics]
        costs += [name for name in dict.fromkeys(asked) if name not in (*metrics, *costs, "executed")]
    return [*(name + suffix for name in metrics for suffix in suffixes), *costs]


def _plain(value: object) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return in_csv(shown(value)) if isinstance(value, str) else shown(value)


def in_csv(text: str) -> str:
    """A text as a field: in one line, and with a quote before what a spreadsheet would carry out as a formula.

    >>> in_csv("=1+1"), in_csv("-1.5"), in_csv("rtn-w4a8")
    ("'=1+1", '-1.5', 'rtn-w4a8')
    """
    plain = one_line(text)
    return f"'{plain}" if _FORMULA.match(plain) and not _NUMBER.fullmatch(plain) else plain


def in_markdown(text: str) -> str:
    """A text that Markdown shows as it is where it could do harm: no tags, markers, cells, links or lines of its own.

    >>> in_markdown("a|b <!-- /qdit-table --> [x](y)")
    'a\\\\|b &lt;!-- /qdit-table --> [x]\\\\(y)'
    """
    entities = {"<": "&lt;", "&": "&amp;"}
    return _HARMFUL.sub(lambda found: entities.get(found[0], f"\\{found[0]}"), one_line(text))


def _markdown(table: Table) -> str:
    if table.spans and len(table.header) - table.n_keys > NARROW:
        grids = [_grid(table, [label], values, range(first, last)) for label, values, first, last in spans(table)]
    else:
        keys, names = table.header[: table.n_keys], table.header[table.n_keys :]
        grids = [_grid(table, keys, names, range(table.n_keys, len(table.header)))]
    return "\n\n".join([*grids, *map(in_markdown, notes(table))]) + "\n"


def _grid(table: Table, keys: list[str], names: list[str], columns: range) -> str:
    """Return a pipe table of some columns; a title of keys that are missing is empty, and a section is a row."""

    def text(cell: Cell) -> str:
        marked = {"": "{}", "best": "**{}**", "tied": "{} ≈"}[cell.mark].format(in_markdown(cell.text))
        return marked + "".join(f" [{note}]" for note in cell.notes)

    body: list[list[str]] = []
    for number, line in enumerate(table.rows):
        if number in table.sections:
            body.append([f"*{in_markdown(table.sections[number])}*", *[""] * (table.n_keys - 1 + len(columns))])
        body.append([text(line[at]) for at in (*range(table.n_keys), *columns)])
    head = [in_markdown(name) for name in (*keys, *[""] * (table.n_keys - len(keys)), *names)]
    align = ["left"] * table.n_keys + ["right"] * len(columns)
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True, colalign=align)


def _escaped(text: str) -> str:
    return html.escape(one_line(text))


def _html(table: Table) -> str:
    def text(cell: Cell) -> str:
        plain = _escaped(cell.text)
        marked = {"": "{}", "best": "<b>{}</b>", "tied": "{} ≈"}[cell.mark].format(plain)
        return marked + "".join(f"<sup>{note}</sup>" for note in cell.notes)

    def line(cells: list[str], tag: str) -> str:
        align = ["left" if i < table.n_keys else "right" for i in range(len(cells))]
        inner = (f'<{tag} style="text-align:{a};{_CELL}">{c}</{tag}>' for a, c in zip(align, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    body = []
    for number, row in enumerate(table.rows):
        if number in table.sections:
            title = _escaped(table.sections[number])
            body.append(f'<tr><th colspan="{len(table.header)}" style="text-align:left;{_SECTION}">{title}</th></tr>')
        body.append(line([text(cell) for cell in row], "td"))
    below = "".join(f"\n<p>{_escaped(note)}</p>" for note in notes(table))
    inner = "\n".join(body)
    head = f'<thead style="border-bottom:1px solid">{_html_head(table, line)}</thead>'
    return f'<table style="{_RULES}">\n{head}\n<tbody>\n{inner}\n</tbody>\n</table>{below}\n'


def _html_head(table: Table, line: Callable[[list[str], str], str]) -> str:
    """Return one row of titles, or two: what is shown, and for which value of the column key."""
    if not table.spans:
        return line([_escaped(name) for name in table.header], "th")
    keys = "".join(
        f'<th rowspan="2" style="text-align:left;vertical-align:bottom;{_CELL}">{_escaped(k)}</th>'
        for k in table.header[: table.n_keys]
    )
    over = "".join(
        f'<th colspan="{len(v)}" style="text-align:center;{_CELL}">{_escaped(k)}</th>' for k, v in table.spans
    )
    under = "".join(
        f'<th style="text-align:right;{_CELL}">{_escaped(v)}</th>' for _, values in table.spans for v in values
    )
    return f"<tr>{keys}{over}</tr>\n<tr>{under}</tr>"


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": _markdown, "latex": latex, "html": _html}
