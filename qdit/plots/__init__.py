"""Figures of a study, for `qdit-table --figures FOLDER`; those of a run are in `qdit.plots.run`. No torch here."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from qdit.errors import UserError
from qdit.plots.charts import against_cost, by_bits, over_time
from qdit.plots.dimensions import by_dimension
from qdit.plots.pictures import side_by_side
from qdit.plots.study import Study, study_of
from qdit.plots.style import save
from qdit.storage.names import fitting
from qdit.tables.pareto import CHARGED
from qdit.tables.quantity import plain, rank, stem

COSTS = {column: name for name, column in CHARGED.items()}  # column of the ledger → name of the file
_DRAWN = ("sqnr", "fid")  # stems of the metrics that are drawn when none are named

__all__ = ["draw", "study_of"]


def draw(
    frame: pd.DataFrame,
    folder: Path,
    metrics: Sequence[str] | None = None,
    bits: str | None = None,
    files: Sequence[str] = ("png",),
) -> list[Path]:
    """Draw a study: metrics over bits, against cost and beside each other, curves over time, samples side by side.

    Args:
        frame: what `qdit.tables.load_results` returned, perhaps narrowed; of one protocol.
        folder: where the files go.
        metrics: whose figures are wanted; None for sqnr and the FIDs, and for all where they are beside each other.
            Names of no metric draw nothing.
        bits: of the changes over metrics, curves and samples; None for the bit-width with the most methods.
        files: what each figure is written as, of `qdit.plots.style.FILES`.

    Returns:
        The files, without those for which the runs keep no data.

    Raises:
        UserError: several protocols, an unknown bit-width, nothing to draw.
    """
    study = study_of(frame)
    chosen = bits or study.busiest()
    if chosen not in study.bits:
        raise UserError(f"--at {chosen}: no method was run at these bits; there are {', '.join(study.bits)}")
    made: list[Path] = []
    dimensions = _metrics(study, ["all"] if metrics is None else metrics)
    for name, drawing in _drawings(study, _metrics(study, metrics), dimensions, chosen):
        if (figure := drawing()) is not None:
            made += [save(figure, folder / f"{name}.{kind}") for kind in files]
    return made


def _drawings(
    study: Study, metrics: Sequence[str], dimensions: Sequence[str], bits: str
) -> Iterator[tuple[str, Callable[[], Figure | None]]]:
    """Every figure of a study: the name of its file without an ending, and what draws it."""
    for metric in metrics:
        if len(study.bits) > 1:
            yield fitting(metric), partial(by_bits, study, metric)
        for cost, name in COSTS.items():
            if any(None not in (row[cost], row[metric]) for row in study.rows):
                yield f"{fitting(metric)}-{name}", partial(against_cost, study, cost, metric)
    yield f"dimensions-{fitting(bits)}", partial(by_dimension, study, bits, dimensions)
    yield f"timesteps-{fitting(bits)}", partial(over_time, study, bits)
    yield f"samples-{fitting(bits)}", partial(side_by_side, study, bits)


def _metrics(study: Study, wanted: Sequence[str] | None) -> list[str]:
    known = sorted(study.summary.metrics, key=lambda m: (rank(m), m))
    measured = [m for m in known if any(row[m] is not None for row in study.rows)]
    if wanted is None:
        return [m for m in measured if stem(m) in _DRAWN] or measured
    return [m for m in measured if "all" in wanted or {m, plain(m)} & set(wanted)]
