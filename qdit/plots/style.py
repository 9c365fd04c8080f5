"""One style for all figures: plain axes, and Okabe and Ito's colours, which all readers can tell apart.

Each family of methods has a colour. Where there are many lines, their names stand at the ends instead of in a legend.
Figures are drawn without a display (Agg) and written atomically. Imports no torch.
"""

import io
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import BboxBase
from numpy.typing import NDArray

from qdit.storage.atomic import atomic_write
from qdit.tables import families

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FAMILY_COLOURS = {"baseline": "#7A7A7A", "dit": "#0072B2", "hybrid": "#D55E00"}
_OTHER_COLOUR = "#009E73"
FILES = ("png", "svg", "pdf")
"""What figures can be written as."""
_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
_DPI = 150
_HANDLE, _LETTER = 0.55, 0.065  # inches of a legend's handle with the room around it, and of a letter
_STYLE: dict[Any, Any] = {
    **{"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4"},
    **{"grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.4, "lines.markersize": 4.5},
}


def look(number: int) -> tuple[str, str]:
    """Return colour and marker of a series; a colour that comes again takes another marker."""
    turn = number // len(COLOURS)
    return COLOURS[number % len(COLOURS)], MARKERS[(number + turn) % len(MARKERS)]


def family_colour(family: object) -> str:
    """Return the colour of a family of methods; all that are not known share one."""
    return FAMILY_COLOURS.get(str(family), _OTHER_COLOUR)


def axes_of(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of so many inches, and its axes."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
        axes = figure.add_subplot()
    axes.yaxis.set_major_locator(MaxNLocator(7))
    return figure, axes


def panels_of(count: int, width: float, height: float, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of so many inches, and axes side by side, which share their y or not."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
        return figure, list(np.atleast_1d(figure.subplots(1, count, sharey=sharey)))


def finish(axes: Axes, title: str | None, legend: bool) -> None:
    """Set a quiet title, and the legend beside the axes, where it covers no data."""
    axes.set_title(title or "", fontsize=9, loc="left")
    if legend:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)


def text_at(figure: Figure, x: float, y: float, text: str, **about: Any) -> None:
    """Write at a place in pixels, from below and from the left."""
    width, height = figure.get_size_inches() * figure.dpi
    figure.text(x / width, y / height, text, **about)


def shorten(text: str, length: int) -> str:
    """Return a text of so many characters at most."""
    return text if len(text) <= length else text[: max(1, length - 1)] + "…"


def save(figure: Figure, path: Path, dpi: float | Literal["figure"] = "figure") -> Path:
    """Write a figure as the file that the ending of its name says; return its path.

    Letters of an SVG are outlines, so that it looks the same everywhere; those of a PDF are embedded TrueType fonts,
    because publishers refuse Type 3. Neither has a date in it: a figure drawn again is the same file.

    Args:
        figure: drawn.
        path: ends in one of `FILES`.
        dpi: pixels an inch, if they are not the figure's own.
    """
    data, kind = io.BytesIO(), path.suffix.removeprefix(".")
    _literal(figure)
    style: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "qdit"}
    style["image.composite_image"] = False  # else one image as coarse as the page
    with matplotlib.rc_context(style):
        figure.savefig(data, format=kind, dpi=dpi, metadata=_UNDATED.get(kind))
    atomic_write(path, data.getvalue())
    return path


def spread(wanted: Sequence[float], gap: float) -> NDArray[np.float64]:
    """Return places at least `gap` apart, in the order of the wanted ones and, in sum of squares, nearest to them."""
    order = np.argsort(wanted, kind="stable")
    blocks: list[list[float]] = []  # sum of (wanted - offset in its block), and length
    for number, value in enumerate(np.asarray(wanted, dtype=float)[order]):
        blocks.append([value - gap * number, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1][0] += last[0]
            blocks[-1][1] += last[1]
    places = np.empty(len(order))
    flat = [total / count for total, count in blocks for _ in range(int(count))]
    places[order] = [value + gap * number for number, value in enumerate(flat)]
    return places


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]], size: float = 7.0) -> None:
    """Write names right of the axes, at the height where their lines end, apart from each other, in their colours.

    Args:
        axes: with its final limits.
        ends: name → x and y of the line's end, and colour.
        size: of the letters, in points.
    """
    _settle(axes)
    box = axes.get_window_extent()
    wanted = [(axes.transData.transform((x, y))[1] - box.y0) / box.height for x, y, _ in ends.values()]
    places = spread(wanted, 1.3 * size * _DPI / 72 / box.height)
    if len(places):
        places += max(0.0, -float(places.min()))  # nothing below the axes, where there is room above
    for (name, (x, y, colour)), place in zip(ends.items(), places, strict=True):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name, (x, y), xycoords="data", xytext=(1.06, float(place)), textcoords="axes fraction", color=colour,
            fontsize=size, va="center", annotation_clip=False, arrowprops={**line, "relpos": (0, 0.5)},
        )  # fmt: skip


def label_points(
    axes: Axes, labels: Sequence[tuple[str, float, float, str]], others: NDArray[np.float64], size: float = 7.0
) -> None:
    """Write names beside points, where they cover neither each other nor, if that can be, any point.

    Args:
        axes: with its final limits.
        labels: name, x, y and colour.
        others: all points [m, 2] that should stay visible.
        size: of the letters, in points.
    """
    _settle(axes)
    pixel = _DPI / 72
    frame, taken = axes.get_window_extent(), _boxes(_pixels(axes, others), 4 * pixel, 4 * pixel)
    weights = np.ones(len(taken))
    for name, x, y, colour in labels:
        width, height = 0.62 * size * pixel * len(name), 1.2 * size * pixel
        at, offsets = axes.transData.transform((x, y)), _offsets(width, height, pixel)
        places = _boxes(at + offsets, width, height)
        chosen = int(_costs(places, offsets, taken, weights, frame).argmin())
        best, taken = offsets[chosen], np.vstack([taken, places[chosen]])
        weights = np.append(weights, 20)  # another name weighs more than a point
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name, (x, y), xytext=tuple(best / pixel), textcoords="offset points", fontsize=size, color=colour,
            ha="center", va="center", arrowprops=line if abs(best[1]) > 1.6 * height else None,
        )  # fmt: skip


def _settle(axes: Axes) -> None:
    """Let the layout find its place, and then keep it, so that pixels mean something."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    _literal(figure)
    figure.draw_without_rendering()


def _literal(figure: Any) -> None:
    """Let every text stand as it is: a $ in a name begins no formula, which may be a wrong one."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)


def _pixels(axes: Axes, points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(axes.transData.transform(points)) if len(points) else np.empty((0, 2))


def _boxes(middles: NDArray[np.float64], width: float, height: float) -> NDArray[np.float64]:
    """Left, bottom, right and top [n, 4] of boxes around points [n, 2]."""
    half = np.array([width / 2, height / 2])
    return np.hstack([middles - half, middles + half])


def _offsets(width: float, height: float, pixel: float) -> NDArray[np.float64]:
    """Places [n, 2] of a label's middle around a point, the nearest first."""
    found = []
    for ring in range(1, 9):
        far = ring * height * 0.9
        for along in (0.0, 0.5, -0.5, 0.8, -0.8):
            found += [(along * (width + 6 * pixel), sign * (far + 2 * pixel)) for sign in (-1, 1)]
        found += [(sign * (width / 2 + (6 + 5 * (ring - 1)) * pixel), 0.0) for sign in (-1, 1)]
    return np.array(found)


def _costs(
    boxes: NDArray[np.float64],
    offsets: NDArray[np.float64],
    taken: NDArray[np.float64],
    weights: NDArray[np.float64],
    frame: BboxBase,
) -> NDArray[np.float64]:
    """How bad each place [n] is: what it covers of what is taken, whether it leaves the axes, how far away it is."""
    low, high = np.maximum(boxes[:, None, :2], taken[:, :2]), np.minimum(boxes[:, None, 2:], taken[:, 2:])
    covered = np.maximum(high - low, 0).prod(-1) @ weights
    outside = (boxes[:, :2] < frame.min).any(1) | (boxes[:, 2:] > frame.max).any(1)
    away = np.maximum(np.abs(offsets) - (boxes[:, 2:] - boxes[:, :2]) / 2, 0)
    return covered * 10 + 1e6 * outside + away.sum(1)


def family_handles(found: Sequence[object]) -> list[Line2D]:
    """Return what stands for the families in a legend; nothing where there is only one."""
    present = sorted({str(family) if family else "" for family in found}, key=families.rank)
    if len(present) < 2:
        return []
    return [Line2D([], [], color=family_colour(f), linewidth=2.5, label=families.title(f)) for f in present]


def legend(axes: Axes, handles: Sequence[Line2D], place: Literal["upper", "lower"] = "upper") -> None:
    """Add a legend above or below everything else, in as many rows as it needs; nothing for no handles."""
    if handles:
        figure = axes.get_figure(root=True)
        assert figure is not None
        about: dict[str, Any] = {"loc": f"outside {place} center", "frameon": False, "fontsize": 8}
        columns = legend_columns([str(handle.get_label()) for handle in handles], figure.get_size_inches()[0])
        figure.legend(handles=handles, ncols=columns, **about)


def legend_columns(labels: Sequence[str], width: float) -> int:
    """Return how many labels stand side by side in a legend, so that its rows fit into so many inches."""
    whole = sum(_HANDLE + _LETTER * len(label) for label in labels)
    return ceil(len(labels) / ceil(whole / width))
