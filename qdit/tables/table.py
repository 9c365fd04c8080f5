"""A table for people: rows of cells with text and marks, and the notes that belong below it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import pandas as pd

from qdit.errors import UserError, did_you_mean
from qdit.keys import COMPONENTS
from qdit.tables import families, select
from qdit.tables.cells import MISSING, Cell, Column, cell
from qdit.tables.floor import LABEL, floor
from qdit.tables.marks import judge
from qdit.tables.notes import lines_below
from qdit.tables.quantity import Quantity, cost_quantity, plain, rank, show, stem
from qdit.tables.records import COSTS
from qdit.tables.summary import PROTOCOL, Seeds, Summary, summarise

FULL = "full precision"
HEADLINE = ("sqnr", "psnr", "fid", "kid")  # shown when no metrics are named; the rest is mentioned below the table
_BITS = ("weight_bits_quantized", "weight_bits", "input_bits")  # effective ones
_LEDGER = ("model_mb", "executed")
_KEY_LABELS = {"quantizer": "quantizer", "bits": "bits", "seed": "seed", PROTOCOL: "protocol"}


@dataclass(frozen=True)
class Table:
    """A table as text: header, rows of cells (the first `n_keys` are labels), footnotes from 1 on, lines below."""

    header: list[str]
    rows: list[list[Cell]]
    n_keys: int
    footnotes: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    sections: dict[int, str] = field(default_factory=dict)
    """Titles by the number of the row that they stand above."""
    spans: list[tuple[str, list[str]]] = field(default_factory=list)
    """Of a spread table: what is shown, and the values of the column key under it."""
    title: str = ""
    """The name of the study, for the caption and label of an article's table."""


Lines = dict[tuple[str, ...], list[select.Row]]


def build_table(
    frame: pd.DataFrame,
    *,
    rows: Sequence[str] = ("quantizer",),
    cols: str | None = None,
    metrics: Sequence[str] | None = None,
    seeds: Seeds = "mean",
    mix_protocols: bool = False,
    group_by: str | None = None,
    brief: bool = False,
) -> Table:
    """Lay out runs: one row per quantizer and bits, or, with `cols`, one column per metric and value of that key.

    Args:
        frame: what `load_results` returned, perhaps narrowed by `where`.
        rows: config keys or columns that make the rows.
        cols: the key that is spread over the columns (`bits`, `sampler.steps`), or None for a long table.
        metrics: names of metrics, `<metric>_delta` for the paired difference to full precision, or columns of the cost
            ledger; None for sqnr, psnr, fid, kid as far as they were measured; `["all"]` for every metric.
        seeds: "mean" averages the seeds of a row (mean ± std), "all" gives each its own row.
        mix_protocols: show runs of several protocols, each labelled and with its own full precision.
        group_by: "family" puts the rows of a family together, under its title.
        brief: no columns of the cost ledger beside `metrics`, and a line below that names the metrics left out.

    Raises:
        UserError: the runs mix protocols, or a name is unknown.
    """
    keys = [*rows, cols] if cols else [*rows, "bits"] if "bits" not in rows else list(rows)
    refuse_twice(rows, cols)
    summary = summarise(frame, keys, seeds=seeds, mix_protocols=mix_protocols)
    quantities = choose_quantities(summary, metrics)
    column_key = select.resolve(cols, frame.columns) if cols else None
    columns = _columns(summary, quantities, column_key, brief)
    labels = [key for key in summary.keys if key != column_key]
    verdict = judge(summary, quantities, column_key)
    footnotes: list[str] = []
    body: list[list[Cell]] = []
    sections: dict[int, str] = {}
    real = _floor_rows(summary, labels, columns, column_key)
    previous = FULL
    by_family = group_by if PROTOCOL not in summary.keys else None  # protocols come before families
    for label, members, title in _grouped(_lines(summary, labels), by_family):
        if previous == FULL != title:
            body += real
        if title not in (previous, FULL, None):
            sections[len(body)] = title
        previous = title
        cells = [cell(summary, members, column, column_key, verdict.marks, footnotes) for column in columns]
        body.append([*(Cell(text) for text in label), *cells])
    if previous == FULL:
        body += real
    header = [_key_label(key) for key in labels] + [
        quantity.label if value is None else f"{quantity.label} {value}" for quantity, value in columns
    ]
    lines = lines_below(summary, quantities, verdict, bool(real))
    if metrics is None or brief:
        lines[:0] = _unshown(summary, quantities)
    return Table(header, body, len(labels), footnotes, lines, sections, _spans(columns))


def refuse_twice(rows: Sequence[str], cols: str | None) -> None:
    """Raise a UserError where a key is given twice."""
    keys = [*rows, cols] if cols else list(rows)
    if len(set(keys)) < len(keys):
        raise UserError(f"--rows {' '.join(rows)} and --cols {cols} name one key twice")


def _grouped(lines: Lines, group_by: str | None) -> Iterator[tuple[tuple[str, ...], list[select.Row], str | None]]:
    """The printed lines with the title of their group: full precision, then the families, or None for no group."""
    whole = {label: members for label, members in lines.items() if members[0]["quantizer"] == select.FULL_PRECISION}
    yield from ((label, members, FULL) for label, members in whole.items())
    rest = {label: members for label, members in lines.items() if label not in whole}
    family = {label: next((row["family"] for row in members if row["family"]), None) for label, members in rest.items()}
    if group_by is None or not any(family.values()):
        yield from ((label, members, None) for label, members in rest.items())
        return
    for label in sorted(rest, key=lambda label: families.rank(family[label])):
        yield label, rest[label], families.title(family[label])


def _spans(columns: list[Column]) -> list[tuple[str, list[str]]]:
    """What each run of neighbouring columns shows, and for which values; nothing in a long table."""
    if any(value is None for _, value in columns):
        return []
    return [
        (quantity.label, [value for _, value in group if value is not None])
        for quantity, group in groupby(columns, key=lambda column: column[0])
    ]


def choose_quantities(summary: Summary, metrics: Sequence[str] | None) -> list[Quantity]:
    """Return what the names mean, in the order given; a UserError names the unknown ones and their neighbours."""
    known = sorted(summary.metrics, key=lambda name: (rank(name), name))
    if metrics is None:
        metrics = [name for name in known if stem(name) in HEADLINE] or known
    elif list(metrics) == ["all"]:
        metrics = known
    chosen, costs = [], {*COSTS, *(key for row in summary.rows for key in row if key.startswith("seconds"))}
    for name in metrics:
        value = name.removesuffix("_delta")
        if meant := [each for each in known if name in (each, plain(each))]:
            chosen += [summary.quantity(each) for each in meant]
        elif meant := [each for each in known if value in (each, plain(each))]:
            chosen += [summary.delta(each) for each in meant]
        elif name in costs:
            chosen.append(cost_quantity(name))
        else:
            hint = did_you_mean(name, {*known, *costs})
            raise UserError(
                f"no run has the metric {name!r}{hint}: these runs have {', '.join(known) or 'none'}; "
                f"the cost ledger has {', '.join(sorted(costs))}"
            )
    return chosen


def _columns(summary: Summary, quantities: list[Quantity], column_key: str | None, brief: bool) -> list[Column]:
    shown = {quantity.column for quantity in quantities}
    effective = _BITS if _bits_are_known(summary) else ("weight_bits",)
    if column_key is None:
        ledger = [cost_quantity(name) for name in (*effective, *_LEDGER) if name not in shown and not brief]
        return [(quantity, None) for quantity in [*quantities, *ledger]]
    spent = () if brief or "weight_bits" in shown else effective
    ledger = [cost_quantity(name) for name in spent if name not in shown]
    quantized = [row for row in summary.rows if row["quantizer"] != select.FULL_PRECISION] or summary.rows
    values = {select.shown(row[column_key]): select.sort_key(column_key, row[column_key]) for row in quantized}
    order = sorted(values, key=lambda value: values[value])
    return [(quantity, value) for quantity in [*quantities, *ledger] for value in order]


def _bits_are_known(summary: Summary) -> bool:
    """Whether inputs can be compared by their bits, too: records of before have none."""
    counted = [r for r in summary.rows if r["quantizer"] != select.FULL_PRECISION and r.get("weight_bits") is not None]
    return bool(counted) and all(row.get("input_bits") is not None for row in counted)


def _lines(summary: Summary, labels: Sequence[str]) -> Lines:
    """Group the rows of the summary into printed lines; full precision is one line per protocol.

    Its record names parts, those of the recipe that it was made for, and has none of them: its label is its name. A
    table of other keys alone, such as the model's name, has it beside their values.
    """
    lines: Lines = defaultdict(list)
    parts = [key for key in labels if key.split(".")[0] in ("quantizer", *COMPONENTS)]
    for row in summary.rows:
        text = {key: select.shown(row[key]) if row[key] is not None else "" for key in labels}
        if row["quantizer"] == select.FULL_PRECISION and parts:
            text |= dict.fromkeys(parts, "") | {parts[0]: FULL}
        elif row["quantizer"] == select.FULL_PRECISION and labels:
            text[labels[-1]] = f"{text[labels[-1]]}, {FULL}"
        lines[tuple(text.values())].append(row)
    return lines


def _floor_rows(
    summary: Summary, labels: Sequence[str], columns: Iterable[Column], column_key: str | None
) -> list[list[Cell]]:
    """Return the row of real data; none in a mixture, and a column of several sample counts has no floor."""
    if PROTOCOL in summary.keys:
        return []
    cells = []
    for quantity, value in columns:
        column = [row for row in summary.rows if value is None or select.shown(row.get(column_key or "")) == value]
        sizes = {(row["dataset"], n) for row in column if (n := row.get(f"{quantity.column}_n")) is not None}
        found = floor(quantity.column, *sizes.pop()) if len(sizes) == 1 else None
        cells.append(Cell(show(*found, quantity) if found else MISSING))
    names = [Cell(LABEL), *(Cell("") for _ in labels[1:])]
    return [[*names, *cells]] if any(cell.text != MISSING for cell in cells) else []


def _key_label(key: str) -> str:
    return _KEY_LABELS.get(key, key.removesuffix(".name").removesuffix("._target_"))


def _unshown(summary: Summary, quantities: list[Quantity]) -> list[str]:
    shown = {quantity.column for quantity in quantities}
    rest = [name for name in sorted(summary.metrics, key=rank) if name not in shown]
    return [f"Also measured: {', '.join(rest)} (--metrics all)."] if rest else []
