"""The lines below a table: how to read its marks, and the protocol under which every number of it was made."""

from collections.abc import Sequence
from pathlib import Path

from qdit.tables import select
from qdit.tables.marks import BASES, Verdict
from qdit.tables.quantity import APART, Quantity, plain
from qdit.tables.records import FOLDER
from qdit.tables.summary import Summary

STILL = ("temporal_flickering", "motion_smoothness", "subject_consistency", "background_consistency")
"""Beginnings of the names of metrics that are highest for a frozen clip."""
MOVING = ("motion_energy", "dynamic_degree", "flow_score")
"""Metrics that show whether clips move."""


def lines_below(summary: Summary, quantities: Sequence[Quantity], verdict: Verdict, has_floor: bool) -> list[str]:
    """Return one line that explains whatever the table uses, then a line for each protocol."""
    marks = set(verdict.marks.values())
    shown = [quantity.column for quantity in quantities]
    lines = []
    if "best" in marks:
        lines.append("Bold: the best quantized value at the same bits.")
    if "tied" in marks:
        lines.append(f"≈: differs from the best by less than two standard errors {_bases(verdict)}.")
    if any(quantity.is_delta for quantity in quantities):
        lines.append("Δ: paired difference to full precision; n.s.: below two standard errors.")
    means = _means(summary, quantities)
    if any(row.get(f"{column}_stderr") is not None for row in summary.rows for column in shown):
        lines.append(f"± is one standard error{', of means with the spread between seeds in it' if means else ''}.")
    lines += means
    if several := sorted({plain(column) for column in shown if APART in column}):
        lines.append(
            f"{', '.join(several)} was computed with several settings or references, a column for each (@): "
            "repeat the commands of the older runs to compute it anew, from the samples that they keep."
        )
    lines += _from_elsewhere(summary, quantities)
    still = [quantity.label for quantity in quantities if quantity.column.startswith(STILL)]
    if still and not any(column.startswith(MOVING) for column in shown):
        lines.append(f"A frozen clip is best by {', '.join(still)}: read them beside {', '.join(MOVING[:2])}.")
    if any(column.startswith("seconds") for column in shown):
        lines.append(
            "Seconds: of this machine, for what was not in the cache; a run that is first makes it for others."
        )
    if has_floor:
        lines.append("Real data: as many real images against the same reference, ± standard deviation.")
    return [" ".join(lines), *_protocols(summary)] if lines else _protocols(summary)


def _means(summary: Summary, quantities: Sequence[Quantity]) -> list[str]:
    """Which values are means over seeds: no text if none are, one, or one for each of the quantities that differ in it.

    A run that lacks a metric is not in its mean, so that a row's numbers need not be of equally many.
    """
    counts = {each: _counts(summary, each.column) for each in quantities if each.column in summary.metrics}
    if max((count for found in counts.values() for count in found), default=0) < 2:
        return []
    rows = [{found[number] for found in counts.values()} - {0} for number in range(len(summary.rows))]
    if all(len(row) < 2 for row in rows):
        return [_seeds(summary, [max(row, default=0) for row in rows])]
    alike: dict[tuple[int, ...], list[str]] = {}
    for quantity, found in counts.items():
        alike.setdefault(found, []).append(quantity.label)
    said = [(labels, _seeds(summary, found)) for found, labels in alike.items()]
    return [f"{', '.join(labels)}: {text[0].lower()}{text[1:]}" for labels, text in said]


def _counts(summary: Summary, metric: str) -> tuple[int, ...]:
    """How many runs of each row have a metric."""
    return tuple(sum(run.get(metric) is not None for run in row["runs"]) for row in summary.rows)


def _seeds(summary: Summary, of_rows: Sequence[int]) -> str:
    """Which rows are means over seeds; full precision is named where it is such a mean."""
    counts_of: dict[str, set[int]] = {}
    bits_of: dict[str, dict[str, None]] = {}  # of the means, in order
    for row, count in zip(summary.rows, of_rows, strict=True):
        if count < (2 if (full := row["quantizer"] == select.FULL_PRECISION) else 1):
            continue
        name = "full precision" if full else row["quantizer"]
        counts_of.setdefault(name, set()).add(count)
        if count > 1:
            bits_of.setdefault(name, {})[row["bits"]] = None
    if not bits_of:
        return "Of one seed."
    counts = sorted(set().union(*counts_of.values()))
    means = f"Mean over {' or '.join(str(count) for count in counts if count > 1)} seeds"
    if len(counts) < 2:
        return f"{means}."
    alike: dict[str, list[str]] = {}
    for name, bits in sorted(bits_of.items()):
        alike.setdefault(f" at {', '.join(bits)}" if len(counts_of[name]) > 1 else "", []).append(name)
    return f"{means}: {'; '.join(', '.join(names) + at for at, names in alike.items())}."


def _from_elsewhere(summary: Summary, quantities: Sequence[Quantity]) -> list[str]:
    """Which metrics are from earlier records of the same runs, in which studies: one sentence, or none."""
    studies: dict[str, list[str]] = {}
    for quantity in quantities:
        metric = quantity.column.removesuffix("_delta") if quantity.is_delta else quantity.column
        if found := {Path(folder).parent.name for run in summary.runs if (folder := run.get(metric + FOLDER))}:
            studies.setdefault(" and ".join(sorted(found)), []).append(metric)
    parts = [f"{', '.join(dict.fromkeys(names))} in {where}" for where, names in studies.items()]
    return [f"The last record of some runs lacks what an earlier one has: {'; '.join(parts)}."] if parts else []


def _bases(verdict: Verdict) -> str:
    """How ties were found: the basis, and its columns where there are several."""
    parts = [
        f"{text} ({', '.join(sorted(map(plain, verdict.bases[basis])))})" if len(verdict.bases) > 1 else text
        for basis, text in BASES.items()
        if basis in verdict.bases
    ]
    return ", or ".join(parts)


def _protocols(summary: Summary) -> list[str]:
    quantized = [run for run in summary.runs if run["quantizer"] != select.FULL_PRECISION]
    executed = "; ".join(sorted({run["executed"] for run in quantized if run["executed"]}))
    lines = []
    for key in sorted({key for run in summary.runs if (key := run["protocol_key"]) is not None}):
        runs = [run for run in summary.runs if run["protocol_key"] == key]
        ids = ", ".join(sorted({str(run["protocol_id"]) for run in runs}))
        parts = [part for part in key.split("|") if not part.startswith("id=")]
        seeds = sorted({select.shown(run["seed"]) for run in runs})
        parts.append(f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}")
        parts += [f"quantized runs: {executed}"] if executed else []
        lines.append(f"Protocol {ids}: {' · '.join(parts)}.")
    return lines
