"""What quantization changes in each metric: a dot plot over dimensions, several methods beside each other.

Metrics have different units, so that a change is drawn in per cent of full precision's value. It is the mean of paired
differences, on the same noise and prompts, and so are its error bars: intervals of values would be many times as wide.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qdit.plots.study import Study
from qdit.plots.style import axes_of, finish, look
from qdit.tables import select

FEWEST = 3
"""Dimensions that are worth a figure; of fewer, the figures of single metrics say more."""
_ROW = 0.13  # inches of a point's row


def paired(study: Study, metrics: Sequence[str]) -> list[str]:
    """Those of the metrics that have a value in full precision other than 0, and a paired difference to it."""
    full = study.full or {}
    measured = [m for m in metrics if full.get(m)]
    return [m for m in measured if any(row[f"{m}_delta"] is not None for row in study.rows)]


def by_dimension(study: Study, bits: str, metrics: Sequence[str]) -> Figure | None:
    """Draw the change of each metric at one bit-width: a block a metric, in it a row a method; bars are two errors.

    The arrow behind a metric's name is the direction that is better. None for fewer than `FEWEST` metrics.
    """
    dimensions, methods = paired(study, metrics), study.at(bits)
    if len(dimensions) < FEWEST or study.full is None:
        return None
    block = len(methods) + 1
    figure, axes = axes_of(7.2, 1.2 + _ROW * block * len(dimensions))
    for place, dimension in enumerate(dimensions):
        if place % 2:
            axes.axhspan(place * block - 0.5, (place + 1) * block - 0.5, color="#f4f4f4", zorder=0)
        for number, (name, row) in enumerate(methods.items()):
            _point(axes, study.full, row, dimension, place * block + number + 0.5, number, name if not place else None)
    axes.axvline(0, color="#555555", linewidth=0.9, linestyle="--", zorder=1)
    middles = [place * block + (block - 1) / 2 for place in range(len(dimensions))]
    axes.set_yticks(middles, [_label(study, dimension) for dimension in dimensions])
    axes.set_ylim(len(dimensions) * block - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("paired change to full precision, in % of its value (bars: two standard errors)")
    finish(axes, bits, legend=True)
    return figure


def _point(
    axes: Axes, full: select.Row, row: select.Row, dimension: str, y: float, number: int, name: str | None
) -> None:
    """Draw one method in one block; where it has no difference nothing, but its name for the legend."""
    colour, marker = look(number)
    about: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 4, "elinewidth": 0.9}
    share = 100 / abs(full[dimension])
    change, error = row[f"{dimension}_delta"], row[f"{dimension}_delta_stderr"]
    x, spread = ([], None) if change is None else ([share * change], [2 * share * (error or 0.0)])
    axes.errorbar(x, [y] * len(x), xerr=spread, label=name, **about)


def _label(study: Study, dimension: str) -> str:
    """A metric's name and direction, without its unit: the axis is in per cent."""
    arrow = {True: " ↑", False: " ↓", None: ""}[study.summary.quantity(dimension).higher_is_better]
    return f"{dimension.replace('_', ' ')}{arrow}"
