"""Runs that are recorded several times, in several studies, become one row each, without losing a value."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from qdit.tables.records import FOLDER, METRIC_SUFFIXES, metric_names
from qdit.tables.select import FULL_PRECISION, Row


def unique_runs(rows: Iterable[Row]) -> list[Row]:
    """Join what is recorded twice: the same run in two studies, and full precision of the same protocol and seed.

    The finished one stays, and of several the last finished, with the metrics that it lacks from those before it: each
    has the folder of its record beside it (`<metric>_folder`), where its values of single samples are. Of a metric that
    several have, the last value counts.
    """
    rows = list(rows)
    done = {row["run_id"] for row in rows if row["status"] == "done"}
    alike: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["finished"] or ""):
        if row["status"] == "done" or row["run_id"] not in done:
            identity = row["seed"] if row["quantizer"] == FULL_PRECISION else row["run_id"]
            alike[(row["quantizer"], identity, row["protocol_key"])].append(row)
    return [_joined(group) for group in alike.values()]


def _joined(group: list[Row]) -> Row:
    """The last of the records of one run, with the metrics that it lacks, the latest of each."""
    last, *before = reversed(group)
    joined = dict(last)
    executed = {last["executed"]: None}
    for row in before:
        for name in metric_names(row):
            if row.get(name) is None or joined.get(name) is not None:
                continue
            joined |= {name + suffix: row.get(name + suffix) for suffix in METRIC_SUFFIXES}
            joined[name + FOLDER] = row["folder"]
            executed[row["executed"]] = None
    if len(executed) > 1:  # what a number was made with stays to be seen
        joined["executed"] = "; ".join(sorted(filter(None, executed)))
    return joined
