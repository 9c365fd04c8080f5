"""The lines below a table: how to read its marks, and the protocol under which every number of it was made."""

from collections.abc import Sequence

from qdit.tables import select
from qdit.tables.marks import BASES, Verdict
from qdit.tables.quantity import APART, Quantity, plain
from qdit.tables.summary import Summary

STILL = ("temporal_flickering", "motion_smoothness", "subject_consistency", "background_consistency")
"""Beginnings of the names of metrics that are highest for a frozen clip."""
MOVING = ("motion_energy", "dynamic_degree", "flow_score")
"""Metrics that show whether clips move."""


def lines_below(summary: Summary, quantities: Sequence[Quantity], verdict: Verdict, has_floor: bool) -> list[str]:
    """Return one line that explains whatever the table uses, then a line for each protocol."""
    marks = set(verdict.marks.values())
    counts = sorted({row["seeds"] for row in summary.rows if row["seeds"]})
    shown = [quantity.column for quantity in quantities]
    lines = []
    if "best" in marks:
        lines.append("Bold: the best quantized value at the same bits.")
    if "tied" in marks:
        lines.append(f"≈: differs from the best by less than two standard errors {_bases(verdict)}.")
    if any(quantity.is_delta for quantity in quantities):
        lines.append("Δ: paired difference to full precision; n.s.: below two standard errors.")
    if counts and counts[-1] > 1:
        lines.append(_seeds(summary))
    elif any(row.get(f"{column}_stderr") is not None for row in summary.rows for column in shown):
        lines.append("± is one standard error.")
    if several := sorted({plain(column) for column in shown if APART in column}):
        lines.append(
            f"{', '.join(several)} was computed with several settings or references, a column for each (@): "
            "repeat the commands of the older runs to compute it anew, from the samples that they keep."
        )
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


def _seeds(summary: Summary) -> str:
    """Which rows are means over seeds, and what their ± is."""
    rows = [row for row in summary.rows if row["seeds"] and row["quantizer"] != select.FULL_PRECISION]
    counts_of: dict[str, set[int]] = {}
    bits_of: dict[str, dict[str, None]] = {}  # of the means, in order
    for row in rows:
        counts_of.setdefault(row["quantizer"], set()).add(row["seeds"])
        if row["seeds"] > 1:
            bits_of.setdefault(row["quantizer"], {})[row["bits"]] = None
    counts = sorted({row["seeds"] for row in rows})
    several = " or ".join(str(count) for count in counts if count > 1)
    means = f"Mean ± standard deviation over {several or 'several'} seeds"
    if len(counts) < 2:
        return f"{means}."
    alike: dict[str, list[str]] = {}
    for name, bits in sorted(bits_of.items()):
        alike.setdefault(f" at {', '.join(bits)}" if len(counts_of[name]) > 1 else "", []).append(name)
    return (
        f"{means}: {'; '.join(', '.join(names) + at for at, names in alike.items())}; other rows: ± one standard error."
    )


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
