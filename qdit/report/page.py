"""The page: gathers what a study has, and fills the template `page.html` with it."""

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qdit.environment import now, versions
from qdit.errors import visible
from qdit.plots.study import first_run
from qdit.report import maps, numbers, pictures
from qdit.tables import families, select
from qdit.tables.marks import judge
from qdit.tables.notes import lines_below
from qdit.tables.records import read_record
from qdit.tables.summary import ROWS, Summary, names_of, summarise
from qdit.tables.table import FULL

FOLDER = Path(__file__).parent
SCRIPTS = ("common.js", "table.js", "pareto.js", "maps.js", "samples.js")
Command = Callable[[list[dict[str, Any]]], str]
"""What makes the runs of a row: from their configs, by dotted keys, to a command line."""


def page(frame: pd.DataFrame, title: str, command: Command, budget: int = pictures.BUDGET) -> str:
    """A study as one page of HTML, which needs no network and no other file.

    Args:
        frame: what `qdit.tables.load_results` returned, perhaps narrowed; of one protocol.
        title: the study's name.
        command: what makes the runs of a row.
        budget: bytes of text for pictures; the rest takes some kilobytes a run.

    Raises:
        UserError: the runs are of several protocols.
    """
    summary = summarise(frame, ROWS)
    rows = numbers.ordered(summary)
    records = {
        number: found
        for number, row in enumerate(rows)
        if row["runs"] and (found := read_record(Path(first_run(row)["folder"]) / "result.json")) is not None
    }
    columns = numbers.columns(summary)
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters["visible"] = visible
    shown = [{"at": number, **each} for number, each in enumerate(_rows(summary, rows, columns, records, command))]
    return environment.get_template("page.html").render(
        title=title,
        rows=shown,
        columns=columns,
        bits=_bits(rows),
        families={row["family"]: row["family_title"] for row in shown if not row["full"]},
        notes=_notes(summary, columns),
        protocols=_protocols(summary),
        failures=numbers.failures(summary),
        partial=_partial(records, shown),
        made=_made(summary, records),
        data=_data(summary, rows, shown, columns, records, budget),
        script=script,
        digest=b64encode(sha256(f"\n{script}\n".encode()).digest()).decode(),
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        now=now(),
        version=versions().get("qdit", "not installed"),
    )


def _rows(
    summary: Summary,
    rows: list[select.Row],
    columns: list[numbers.Column],
    records: Mapping[int, Any],
    command: Command,
) -> list[dict[str, Any]]:
    """What the table and the charts know of each row."""
    cells, names = numbers.cells(summary, columns), names_of(summary, rows)
    return [
        {
            "name": FULL if row["quantizer"] == select.FULL_PRECISION else names[id(row)],
            "full": row["quantizer"] == select.FULL_PRECISION,
            "bits": select.shown(row["bits"]),
            "family": "" if row["family"] is None else str(row["family"]),
            "family_title": families.title(row["family"]),
            "kind": row["family"] if row["family"] in families.FAMILIES else "other",
            "cells": cells[id(row)],
            "executed": row["executed"] or "",
            "seeds": row["seeds"],
            "failed": row["errors"],
            "ids": [str(run["run_id"]) for run in row["runs"]],
            "command": command([records[number]["config"]] if len(row["runs"]) < 2 else _configs(row))
            if number in records
            else "",
        }
        for number, row in enumerate(rows)
    ]


def _configs(row: select.Row) -> list[dict[str, Any]]:
    found = (read_record(Path(run["folder"]) / "result.json") for run in row["runs"])
    return [record["config"] for record in found if record is not None]


def _data(
    summary: Summary,
    rows: list[select.Row],
    shown: list[dict[str, Any]],
    columns: list[numbers.Column],
    records: Mapping[int, Any],
    budget: int,
) -> dict[str, Any]:
    """What the scripts read."""
    points = [
        {
            **{key: row[key] for key in ("name", "bits", "kind", "full", "command", "family_title")},
            "values": {
                column.quantity.column: [_short(cell.value), _short(_half(source, column)), cell.text]
                for column, cell in zip(columns, row["cells"], strict=True)
                if cell.value is not None and isfinite(cell.value)
            },
        }
        for row, source in zip(shown, rows, strict=True)
    ]
    return {
        "rows": points,
        "labels": {each.quantity.column: each.quantity.label for each in columns},
        "metrics": [each.quantity.column for each in columns if each.is_metric],
        "logarithmic": [each.quantity.column for each in columns if each.logarithmic],
        "fronts": numbers.fronts(rows, columns),
        "bits": _bits(rows),
        "maps": {"time": maps.over_time(records), "layers": maps.by_layer(records)},
        "samples": pictures.samples(summary, rows, budget),
    }


def _half(row: select.Row, column: numbers.Column) -> float:
    return numbers.bar(row, column.quantity) if column.is_metric else 0.0


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _bits(rows: list[select.Row]) -> list[str]:
    """The bit-widths of quantized rows, from high to low."""
    found = {select.shown(row["bits"]): row["bits"] for row in rows if row["quantizer"] != select.FULL_PRECISION}
    return sorted(found, key=lambda bits: select.sort_key("bits", found[bits]))


def _notes(summary: Summary, columns: list[numbers.Column]) -> str:
    """What the marks of the table mean, as tables say it; the protocol has a box of its own."""
    quantities = [each.quantity for each in columns if each.seen]
    lines = lines_below(summary, quantities, judge(summary, quantities, None), has_floor=False)
    return " ".join(line for line in lines if not line.startswith("Protocol "))


def _protocols(summary: Summary) -> list[dict[str, Any]]:
    """Each protocol's parts as name and value, its ids and seeds."""
    found = []
    for key in sorted({key for run in summary.runs if (key := run["protocol_key"]) is not None}):
        runs = [run for run in summary.runs if run["protocol_key"] == key]
        parts = [part.partition("=") for part in key.split("|") if not part.startswith("id=")]
        seeds = ", ".join(sorted({select.shown(run["seed"]) for run in runs}))
        found.append(
            {
                "ids": ", ".join(sorted({str(run["protocol_id"]) for run in runs})),
                "parts": [*((value and name, value or name) for name, _, value in parts), ("seed", seeds)],
            }
        )
    return found


def _partial(records: Mapping[int, Any], shown: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Finished runs to which a metric could not be added, with the message."""
    return [
        (f"{shown[number]['name']} {shown[number]['bits']}", record["update_error"])
        for number, record in records.items()
        if record.get("update_error")
    ]


def _made(summary: Summary, records: Mapping[int, Any]) -> list[tuple[str, list[tuple[str, int]]]]:
    """What the rows were made with: versions of packages, commits, and how quantized layers multiplied."""
    counts: dict[str, Counter[str]] = {}
    for record in records.values():
        about = dict(record.get("versions") or {}) | {
            "commit": str((record.get("git") or {}).get("commit") or "—")[:12]
        }
        for name, value in (about | {"executed": (record.get("cost") or {}).get("executed") or "—"}).items():
            counts.setdefault(str(name), Counter())[str(value)] += 1
    dates = sorted(str(run["finished"])[:10] for run in summary.runs if run["finished"])
    if dates:
        counts["finished"] = Counter([dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"])
    return [(name, found.most_common()) for name, found in counts.items()]
