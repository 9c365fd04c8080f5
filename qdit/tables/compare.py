"""The comparison's layout, as papers print it: a row per method, in families; columns of bits under each quantity.

Paired metrics come first, because they separate methods with few samples; then distances to real data, the size and
the time. `qdit-table` chooses it by itself for a study of several families at several bits.
"""

from collections.abc import Sequence

import pandas as pd

from qdit.tables import select
from qdit.tables.families import KEY
from qdit.tables.quantity import rank, stem
from qdit.tables.records import metric_names
from qdit.tables.summary import Seeds
from qdit.tables.table import Table, build_table

COMPARED = ("sqnr", "psnr", "ssim", "fid", "sfid", "is")  # stems of the metrics, in the order of the columns
SPENT = ("weight_bits", "input_bits", "model_mb", "seconds_quantize", "samples_per_second")


def is_comparison(frame: pd.DataFrame) -> bool:
    """Return whether the quantized runs have several families and several bits."""
    if KEY not in frame:
        return False
    quantized = [row for row in select.records(frame) if row["quantizer"] != select.FULL_PRECISION]
    return all(len({row[key] for row in quantized} - {None}) > 1 for key in (KEY, "bits"))


def compare(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    seeds: Seeds = "mean",
    mix_protocols: bool = False,
) -> Table:
    """Lay out a comparison of methods; arguments and errors as `build_table`, with metrics of its own by default."""
    counted = frame.filter(items=["input_bits"]).notna().to_numpy().any()  # records of before have none
    spent = [column for column in SPENT if column in frame and (column != "input_bits" or counted)]
    shown = [*_compared(frame), *spent] if metrics is None else list(metrics)
    return build_table(frame, cols="bits", metrics=shown, seeds=seeds, mix_protocols=mix_protocols, group_by="family")


def _compared(frame: pd.DataFrame) -> list[str]:
    names = [name for name in metric_names(frame.columns) if stem(name) in COMPARED]
    return sorted(names, key=lambda name: (rank(name), name))
