"""Charts of a study: quality at each bit-width, quality against cost with its Pareto front, error over timesteps."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from qdit.plots.study import Study, curve
from qdit.plots.style import MARKERS, axes_of, family_handles, label_ends, label_points, legend, panels_of
from qdit.tables.pareto import front
from qdit.tables.quantity import Quantity, cost_quantity, stem

CURVE = "sqnr_per_timestep"
FEW = 12  # points that all have their names
LOGARITHMIC = ("fid", "sfid", "kid")  # distances, which a method that fails multiplies
_DASHED: dict[str, Any] = {"color": "#555555", "linestyle": "--", "linewidth": 0.9}  # full precision
_BY_BITS = {"w8a8": "o", "w6a6": "s", "w4a8": "^", "w4a4": "v"}
_OTHERS = ("D", "P", "X", "*", "<", ">", "p", "h")  # of number formats, and bits that are rarer


def by_bits(study: Study, metric: str) -> Figure:
    """Draw a metric at each bit-width: a panel with a scale of its own, a row per method, in its family's colour.

    Bars are two standard errors; the dashed line is full precision.
    """
    quantity = study.summary.quantity(metric)
    methods, bits = study.methods(), study.bits
    names = list(methods)
    figure, panels = panels_of(len(bits), 1.2 + 1.75 * len(bits), _height(len(names)))
    for axes, width in zip(panels, bits, strict=True):
        for place, rows in enumerate(methods.values()):
            row = next((row for row in rows if row["bits"] == width and row[metric] is not None), None)
            if row is not None:
                about: dict[str, Any] = {"color": study.colour(row), "fmt": "o", "markersize": 4}
                axes.errorbar(row[metric] * quantity.factor, place, xerr=bar(row, quantity), **about)
        axes.set_title(width, fontsize=9)
        axes.set_xlabel(quantity.label)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if (value := _full(study, quantity)) is not None:
            axes.axvline(value, **_DASHED)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    for label, rows in zip(panels[0].get_yticklabels(), methods.values(), strict=True):
        label.set_color(study.colour(rows[0]))
    handles = family_handles([row["family"] for row in study.rows])
    if _full(study, quantity) is not None:
        handles.append(Line2D([], [], **_DASHED, label="full precision"))
    legend(panels[0], handles)
    return figure


def against_cost(study: Study, cost: str, metric: str) -> Figure:
    """Draw a metric against a column of the cost ledger: a point per method and bit-width, the Pareto front as a line.

    Colours are families, markers bit-widths; the points of the front have their names, or all where they are few. A
    metric of which neither more nor less is better has no front, which the legend says.
    """
    quantity = study.summary.quantity(metric)
    rows = [row for row in study.rows if None not in (row[cost], row[metric])]
    figure, axes = axes_of(6.4, 4.4)
    marker = markers(study.bits)
    for row in rows:
        about: dict[str, Any] = {"color": study.colour(row), "fmt": marker[row["bits"]], "alpha": 0.8}
        about |= {"yerr": bar(row, quantity), "markersize": 4, "elinewidth": 0.6}
        axes.errorbar(row[cost], row[metric] * quantity.factor, **about)
    points = np.array([(row[cost], row[metric] * quantity.factor) for row in rows], dtype=float).reshape(-1, 2)
    chosen = front(points, quantity.higher_is_better)
    axes.plot(*points[chosen].T, color="black", linewidth=0.9, alpha=0.7, zorder=1, drawstyle="steps-post")
    axes.set(xlabel=cost_quantity(cost).label, ylabel=quantity.label)
    axes.margins(x=0.08)
    _logarithmic(axes, metric)
    _reference(axes, study, quantity)
    legend(axes, family_handles([row["family"] for row in rows]))
    shapes: dict[str, Any] = {"color": "#444444", "linestyle": "none", "markersize": 4.5}
    kinds = [Line2D([], [], marker=marker[bits], label=bits, **shapes) for bits in study.bits]
    line: dict[str, Any] = {"color": "black", "linewidth": 0.9, "label": "Pareto front"}
    if quantity.higher_is_better is None:
        line = {"linestyle": "none", "label": "no Pareto front: neither\nmore nor less is better"}
    legend(axes, [*kinds, Line2D([], [], **line)], "lower")
    names = [
        (study.names[id(row)], *point, study.colour(row)) for row, point in zip(rows, points.tolist(), strict=True)
    ]
    bars = np.array([bar(row, quantity) for row in rows])
    covered = [points + np.stack([0 * bars, share * bars], 1) for share in (-1, -0.5, 0, 0.5, 1)]
    covered += [_between(points[chosen])]
    named = chosen if len(rows) > FEW else range(len(rows))
    label_points(axes, [names[number] for number in named], np.concatenate(covered))
    return figure


def markers(bits: Sequence[str]) -> dict[str, str]:
    """A marker for each bit-width or format of a figure; the usual bit-widths have theirs in every figure."""
    others = [each for each in bits if each not in _BY_BITS]
    return _BY_BITS | {each: _OTHERS[number % len(_OTHERS)] for number, each in enumerate(others)}


def over_time(study: Study, bits: str) -> Figure | None:
    """Draw the error of every method at one bit-width over the timesteps, in the order of sampling.

    The curves are the records' `sqnr_per_timestep`. On the right they are relative to the median of the methods,
    because differences between methods are small compared with what all of them lose towards the image. Returns None
    where no run has a curve.
    """
    rows = study.at(bits)
    curves = {name: found for name, row in rows.items() if (found := curve(row, CURVE)) is not None}
    if not curves:
        return None
    figure, panels = panels_of(2, 8.6, _height(len(curves)), sharey=False)
    first = next(iter(curves.values()))
    steps = np.asarray(first["x"], dtype=float)
    values = {name: np.interp(steps[::-1], found["x"][::-1], found["y"][::-1])[::-1] for name, found in curves.items()}
    median = np.median(list(values.values()), axis=0)
    ends: dict[str, tuple[float, float, str]] = {}
    for number, (name, y) in enumerate(values.items()):
        colour = study.colour(rows[name])
        about: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "markevery": max(1, len(steps) // 8)}
        for axes, shown in zip(panels, (y, y - median), strict=True):
            axes.plot(steps, shown, color=colour, linewidth=1.0, markersize=3.5, alpha=0.85, **about)
        ends[name] = (float(steps[-1]), float((y - median)[-1]), colour)
    for axes, label in zip(panels, (first["ylabel"], "difference to the median method (dB)"), strict=True):
        axes.invert_xaxis()
        axes.margins(x=0.02)
        axes.set(xlabel=f"{first['xlabel']} (sampling runs to the right)", ylabel=label)
    panels[0].set_title(bits, fontsize=9, loc="left")
    legend(panels[0], family_handles([row["family"] for row in rows.values()]))
    label_ends(panels[1], ends)
    return figure


def _between(corners: NDArray[np.float64], count: int = 40) -> NDArray[np.float64]:
    """Points along the steps of a front, that names should not cover."""
    shares = np.linspace(0, 1, count)[:, None]
    legs = [
        start + shares * (end - start)
        for (x0, y0), (x1, y1) in pairwise(corners.tolist())
        for start, end in ((np.array([x0, y0]), np.array([x1, y0])), (np.array([x1, y0]), np.array([x1, y1])))
    ]
    return np.concatenate(legs) if legs else np.empty((0, 2))


def bar(row: dict[str, Any], quantity: Quantity) -> float:
    """Half the length of a row's error bar: two standard errors, as shown."""
    return 2 * quantity.factor * (row[f"{quantity.column}_stderr"] or 0.0)


def _full(study: Study, quantity: Quantity) -> float | None:
    """Full precision's value, as shown; None where the metric compares with it."""
    value = None if study.full is None else study.full.get(quantity.column)
    return None if value is None else value * quantity.factor


def _reference(axes: Axes, study: Study, quantity: Quantity) -> None:
    """Draw full precision as a dashed line, where the metric has a value of it."""
    if (value := _full(study, quantity)) is not None:
        axes.axhline(value, **_DASHED)
        place = axes.get_yaxis_transform()
        about: dict[str, Any] = {"transform": place, "fontsize": 7, "color": "#555555", "va": "bottom"}
        axes.text(0.01, value, "full precision", **about)


def _logarithmic(axes: Axes, metric: str) -> None:
    if stem(metric) in LOGARITHMIC and axes.get_ylim()[0] > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())


def _height(methods: int) -> float:
    return max(3.0, 1.3 + 0.17 * methods)
