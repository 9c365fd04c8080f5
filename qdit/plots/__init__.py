"""Figures of a study, for `qdit-table --figures FOLDER`; those of a run are in `qdit.plots.run`. No torch here."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from qdit.errors import UserError
from qdit.plots.charts import against_cost, by_bits, over_time
from qdit.plots.pictures import side_by_side
from qdit.plots.study import Study, study_of
from qdit.storage.names import fitting
from qdit.tables.pareto import CHARGED
from qdit.tables.quantity import plain, rank, stem

COSTS = {column: name for name, column in CHARGED.items()}  # column of the ledger → name of the file
_DRAWN = ("sqnr", "fid")  # stems of the metrics that are drawn when none are named

__all__ = ["draw", "study_of"]


def draw(
    frame: pd.DataFrame, folder: Path, metrics: Sequence[str] | None = None, bits: str | None = None
) -> list[Path]:
    """Draw a study: each metric over bits and against cost, curves over time, samples side by side.

    Args:
        frame: what `qdit.tables.load_results` returned, perhaps narrowed; of one protocol.
        folder: where the PNG files go.
        metrics: whose figures are wanted; None for sqnr and the FIDs. Names of no metric draw nothing.
        bits: of the curves and samples; None for the bit-width with the most methods.

    Returns:
        The files, without those for which the runs keep no data.

    Raises:
        UserError: several protocols, an unknown bit-width, nothing to draw.
    """
    study = study_of(frame)
    chosen = bits or study.busiest()
    if chosen not in study.bits:
        raise UserError(f"--at {chosen}: no method was run at these bits; there are {', '.join(study.bits)}")
    drawings: list[Callable[[], Path | None]] = []
    for metric in _metrics(study, metrics):
        if len(study.bits) > 1:
            drawings.append(lambda m=metric: by_bits(study, m, folder / f"{fitting(m)}.png"))
        for cost, name in COSTS.items():
            if any(None not in (row[cost], row[metric]) for row in study.rows):
                drawings.append(
                    lambda m=metric, c=cost, n=name: against_cost(study, c, m, folder / f"{fitting(m)}-{n}.png")
                )
    drawings.append(lambda: over_time(study, chosen, folder / f"timesteps-{fitting(chosen)}.png"))
    drawings.append(lambda: side_by_side(study, chosen, folder / f"samples-{fitting(chosen)}.png"))
    return [path for drawing in drawings if (path := drawing()) is not None]


def _metrics(study: Study, wanted: Sequence[str] | None) -> list[str]:
    known = sorted(study.summary.metrics, key=lambda m: (rank(m), m))
    measured = [m for m in known if any(row[m] is not None for row in study.rows)]
    if wanted is None:
        return [m for m in measured if stem(m) in _DRAWN] or measured
    return [m for m in measured if "all" in wanted or {m, plain(m)} & set(wanted)]
