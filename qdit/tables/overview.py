"""What a sweep ends with: one table that fits a terminal, of the metrics that separate methods with few samples.

A row for each bits and method, those of the same bits together, and the paired metrics with their errors beside each
other. `compare` shows more of a study, in as many tables as it takes.
"""

import pandas as pd

from qdit.tables import select
from qdit.tables.quantity import rank
from qdit.tables.records import metric_names
from qdit.tables.table import Table, build_table

MOST = 4
"""Metrics that stand side by side on a terminal, with their errors."""


def overview(frame: pd.DataFrame) -> Table:
    """Lay out what a study has found so far; runs of several protocols stand apart.

    Args:
        frame: what `load_results` returned.

    Raises:
        UserError: as `build_table`.
    """
    names = sorted(metric_names(frame.columns), key=lambda name: (rank(name), name))
    full = [row for row in select.records(frame) if row["quantizer"] == select.FULL_PRECISION]
    # Full precision has none with itself.
    paired = [name for name in names if all(row[name] is None for row in full)]
    shown = [*(paired or names)[:MOST], "model_mb"]
    return build_table(frame, rows=("bits", "quantizer"), metrics=shown, mix_protocols=True, brief=True)
