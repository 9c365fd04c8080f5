"""Figures of a run and of a study, one function each; they return the path they wrote.

Colours are Okabe and Ito's, which readers with any colour vision tell apart; markers repeat what colours say. Figures
are drawn without a display (Agg) and written atomically.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from qdit.store import atomic_write
from qdit.tables.quantity import cost_quantity, metric_quantity
from qdit.tables.select import FULL_PRECISION, records, refuse_mixture, unique_runs

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DPI = 150
_STYLE: dict[Any, Any] = {
    **{"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4"},
    **{"grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.4, "lines.markersize": 4.5},
}


def difference(
    first: UInt8[Tensor, "n 3 H W"], second: UInt8[Tensor, "n 3 H W"], gain: int = 4
) -> UInt8[Tensor, "n 3 H W"]:
    """Return `gain` times the absolute difference, inverted: white where two rows agree."""
    return 255 - ((first.int() - second.int()).abs() * gain).clamp(max=255).to(first.dtype)


def sample_grid(
    rows: Sequence[tuple[str, UInt8[Tensor, "n 3 H W"]]],
    path: Path,
    captions: Sequence[str] | None = None,
    columns: int = 8,
) -> Path:
    """Draw rows of images above each other, full precision first: a column is one noise and class.

    Args:
        rows: label and images of each row; all rows have the same n, H and W.
        path: PNG to write.
        captions: one for each of the n columns, printed above it.
        columns: images side by side; more of them wrap into further bands of rows.
    """
    images = [np.asarray(row.cpu()).transpose(0, 2, 3, 1) for _, row in rows]
    count, height, width, _ = images[0].shape
    scale = max(1, round(96 / width))  # small images grow by whole pixels, large ones stay
    tile_h, tile_w, gap = height * scale, width * scale, 6
    per_band, bands = min(columns, count), math.ceil(count / columns)
    left, head = 14 + 7 * max(len(label) for label, _ in rows), 24 if captions else 8
    band_h = head + len(rows) * (tile_h + gap) + 6
    canvas_w, canvas_h = left + per_band * (tile_w + gap) + 8, bands * band_h + 4
    figure = Figure(figsize=(canvas_w / 100, canvas_h / 100), dpi=100, facecolor="white")
    for index in range(count):
        band, column = divmod(index, per_band)
        x = left + column * (tile_w + gap)
        top = canvas_h - band * band_h - head
        if captions:
            text = _shorten(captions[index], tile_w // 6)
            _text(figure, x + tile_w / 2, top + 6, text, ha="center", va="bottom", color="#444444", fontsize=8)
        for number, (label, _) in enumerate(rows):
            y = top - number * (tile_h + gap)
            tile = images[number][index].repeat(scale, axis=0).repeat(scale, axis=1)
            figure.figimage(tile, x, y - tile_h, origin="upper")
            if column == 0:
                _text(figure, left - 8, y - tile_h / 2, label, ha="right", va="center", fontsize=9)
    return _save(figure, path, dpi=100)


def layer_chart(layers: Sequence[Mapping[str, Any]], path: Path, title: str | None = None) -> Path:
    """Draw the SQNR of each layer's output over the depth: a line a role, a marker a layer.

    Args:
        layers: the record's `layers`: site, role, block (None outside the blocks), sqnr in dB.
        path: PNG to write.
        title: what stands above, such as the name of the run.
    """
    measured = [layer for layer in layers if layer.get("sqnr") is not None]
    blocks = [layer["block"] for layer in measured if layer.get("block") is not None]
    depth = max(blocks, default=-1) + 1
    roles = list(dict.fromkeys(str(layer["role"]) for layer in measured))
    figure, axes = _axes(6.4, 3.4)
    for number, role in enumerate(roles):
        x, y = _by_role(measured, role, depth)
        colour, marker = _look(number)
        axes.plot(x, y, linestyle="none", label=role, alpha=0.85, markeredgewidth=0, color=colour, marker=marker)
        means = {block: float(np.mean([b for a, b in zip(x, y, strict=True) if a == block])) for block in sorted({*x})}
        axes.plot(list(means), list(means.values()), color=colour, alpha=0.6, linewidth=1.2)
    outside = any(layer.get("block") is None for layer in measured)
    step = max(1, depth // 14)
    ticks = list(range(0, depth, step))
    axes.set_xticks([*ticks, depth] if outside else ticks, [*map(str, ticks), "outside"] if outside else None)
    axes.set(xlabel="block", ylabel="SQNR of the layer's output (dB)")
    _finish(axes, title, bool(roles))
    return _save(figure, path)


def group_map(groups: Sequence[Mapping[str, Any]], path: Path, title: str | None = None) -> Path:
    """Draw the group sizes that a search chose: a column a block, a row a kind of site, darker for larger groups.

    Args:
        groups: the record's `search.groups`: role, stage, block (None outside) and group_size of each gene.
        path: PNG to write.
        title: what stands above, such as the name of the run.
    """
    kinds = list(dict.fromkeys((group["role"], group["stage"]) for group in groups))
    blocks = sorted({group["block"] for group in groups}, key=lambda block: (block is None, block))
    sizes = sorted({int(group["group_size"]) for group in groups})
    cells = np.full((len(kinds), len(blocks)), np.nan)
    for group in groups:
        row, column = kinds.index((group["role"], group["stage"])), blocks.index(group["block"])
        cells[row, column] = sizes.index(int(group["group_size"]))
    figure, axes = _axes(1.6 + 0.38 * max(len(blocks), 8), 0.9 + 0.38 * len(kinds))
    axes.grid(visible=False)
    axes.imshow(cells, cmap="Blues", vmin=-1, vmax=len(sizes), aspect="auto")
    for (row, column), level in np.ndenumerate(cells):
        if not np.isnan(level):
            colour = "white" if level > len(sizes) / 2 else "black"
            axes.text(column, row, str(sizes[int(level)]), ha="center", va="center", color=colour, fontsize=7)
    axes.set_yticks(range(len(kinds)), [role for role, _ in kinds])
    axes.set_xticks(range(len(blocks)), ["other" if block is None else str(block) for block in blocks])
    axes.set_xlabel("block")
    _finish(axes, title, legend=False)
    return _save(figure, path)


def bit_map(bits: Sequence[Mapping[str, Any]], path: Path, title: str | None = None) -> Path:
    """Draw what a search for bits measured and chose: a row a site, a column a bit-width and range, darker for harm.

    Shades are of the logarithm of the loss within each group of sites, because groups have different metrics;
    a line parts them. A dot marks what was chosen.

    Args:
        bits: the record's `search.bits`: site, group, bits in each range, and loss by bit-width and range.
        path: PNG to write.
        title: what stands above, such as the name of the run.
    """
    widths, ranges = list(bits[0]["loss"]), len(bits[0]["bits"])
    rows = sorted(bits, key=lambda row: row["group"])  # stable: forward order within a group
    losses = np.array([[row["loss"][width] for width in widths] for row in rows], dtype=float).reshape(len(rows), -1)
    positive = np.where(losses > 0, losses, np.nan)
    shades = np.log10(np.where(np.isnan(positive), np.nanmin(positive, initial=1.0), positive))
    groups = [row["group"] for row in rows]
    for group in dict.fromkeys(groups):
        own = np.array([name == group for name in groups])
        low, high = shades[own].min(), shades[own].max()
        shades[own] = (shades[own] - low) / (high - low or 1.0)
    figure, axes = _axes(2.6 + 0.34 * max(losses.shape[1], 9), 1.1 + 0.17 * len(rows))
    axes.grid(visible=False)
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for number, row in enumerate(rows):
        places = [widths.index(str(width)) * ranges + part for part, width in enumerate(row["bits"])]
        axes.plot(places, [number] * ranges, linestyle="", marker="o", markersize=3, color=COLOURS[1])
    for edge in range(1, len(widths)):
        axes.axvline(edge * ranges - 0.5, color="white", linewidth=3)
    for edge in range(1, len(rows)):
        if groups[edge] != groups[edge - 1]:
            axes.axhline(edge - 0.5, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [_shorten(row["site"], 44) for row in rows], fontsize=6)
    labels = [f"{width} bits\n{part + 1}" if part == 0 else str(part + 1) for width in widths for part in range(ranges)]
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlabel("range of timesteps, noisiest first; dots: chosen")
    _finish(axes, title, legend=False)
    return _save(figure, path)


def timestep_chart(curves: Mapping[str, Mapping[str, Any]], path: Path, title: str | None = None) -> Path:
    """Draw curves over the timestep in the order of sampling: noise on the left, image on the right.

    Args:
        curves: label → {x, y, stderr (optional), xlabel, ylabel}, as in the record's `curves`.
        path: PNG to write.
        title: what stands above.
    """
    figure, axes = _axes(6.0, 3.4)
    for number, (label, curve) in enumerate(curves.items()):
        x, y = np.asarray(curve["x"], dtype=float), np.asarray(curve["y"], dtype=float)
        colour, marker = _look(number)
        axes.plot(x, y, color=colour, marker=marker, label=label)
        if curve.get("stderr") is not None:
            band = 2 * np.asarray(curve["stderr"], dtype=float)
            axes.fill_between(x, y - band, y + band, color=colour, alpha=0.18, linewidth=0)
    first = next(iter(curves.values()), {})
    axes.invert_xaxis()
    axes.set(xlabel=f"{first.get('xlabel', 'timestep')} (sampling runs to the right)", ylabel=first.get("ylabel", ""))
    _finish(axes, title, len(curves) > 1)
    return _save(figure, path)


def pareto(frame: pd.DataFrame, x: str, y: str, path: Path) -> Path:
    """Draw quality against cost: a point a run, a colour a quantizer, the bits beside it, the front as a line.

    Args:
        frame: what `qdit.tables.load_results` returned.
        x: a column of the cost ledger, less is better (`weight_bits`, `model_mb`, `gbops`).
        y: a metric; its direction comes with the frame; its bar is two standard errors.
        path: PNG to write.

    Raises:
        UserError: the runs were made under several protocols.
    """
    runs = unique_runs(records(frame))
    refuse_mixture(runs)
    full = [run[y] for run in runs if run["quantizer"] == FULL_PRECISION and run[y] is not None]
    points = [run for run in runs if run["quantizer"] != FULL_PRECISION and None not in (run[x], run[y])]
    figure, axes = _axes(5.6, 3.8)
    for number, name in enumerate(sorted({run["quantizer"] for run in points})):
        colour, marker = _look(number)
        for index, run in enumerate(run for run in points if run["quantizer"] == name):
            bar = 2 * (run.get(f"{y}_stderr") or 0.0)
            label = name if index == 0 else None
            axes.errorbar(run[x], run[y], yerr=bar, color=colour, fmt=marker, label=label, capsize=2, elinewidth=0.8)
            axes.annotate(str(run["bits"]), (run[x], run[y]), xytext=(5, 4), textcoords="offset points", fontsize=7)
    if full:
        axes.axhline(float(np.mean(full)), color="#555555", linestyle="--", linewidth=1, label="full precision")
    higher = next((run[f"{y}_higher_is_better"] for run in points if run[f"{y}_higher_is_better"] is not None), True)
    front = _front(np.array([(run[x], run[y]) for run in points], dtype=float).reshape(-1, 2), higher)
    axes.plot(*front.T, color="#999999", linewidth=1, zorder=1, drawstyle="steps-post")
    axes.margins(x=0.1)
    axes.set(xlabel=cost_quantity(x).label, ylabel=metric_quantity(y, higher).label)
    _finish(axes, None, legend=bool(points))
    return _save(figure, path)


def _front(points: NDArray[np.float64], higher: bool) -> NDArray[np.float64]:
    """Return the points [m, 2] that no other beats in both cost and quality, by rising cost."""
    kept: list[NDArray[np.float64]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1] if higher else p[1])):
        if not kept or (point[1] > kept[-1][1] if higher else point[1] < kept[-1][1]):
            kept.append(point)
    return np.array(kept).reshape(-1, 2)


def _by_role(layers: Sequence[Mapping[str, Any]], role: str, depth: int) -> tuple[list[int], list[float]]:
    chosen = [layer for layer in layers if layer["role"] == role]
    x = [depth if layer.get("block") is None else int(layer["block"]) for layer in chosen]
    return x, [float(layer["sqnr"]) for layer in chosen]


def _look(number: int) -> tuple[str, str]:
    turn = number // len(COLOURS)  # a colour that comes again takes another marker
    return COLOURS[number % len(COLOURS)], MARKERS[(number + turn) % len(MARKERS)]


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
        axes = figure.add_subplot()
    axes.yaxis.set_major_locator(MaxNLocator(7))
    return figure, axes


def _finish(axes: Axes, title: str | None, legend: bool) -> None:
    """Set a quiet title, and the legend beside the axes, where it covers no data."""
    axes.set_title(title or "", fontsize=9, loc="left")
    if legend:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)


def _text(figure: Figure, x: float, y: float, text: str, **look: Any) -> None:
    width, height = figure.get_size_inches() * figure.dpi
    figure.text(x / width, y / height, text, **look)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(1, length - 1)] + "…"


def _save(figure: Figure, path: Path, dpi: int = _DPI) -> Path:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    atomic_write(path, data.getvalue())
    return path
