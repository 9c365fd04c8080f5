"""Figures of a run, one function each; they return the path they wrote. Those of a study are in `qdit.plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from qdit.plots.style import COLOURS, axes_of, finish, look, panels_of, save, shorten
from qdit.plots.tiles import strips, tiles


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

    Clips [n, F, 3, H, W] are strips of frames of up to 128 pixels, of which fewer are side by side.

    Args:
        rows: label and images of each row; all rows have the same n, H and W.
        path: PNG to write.
        captions: one for each of the n columns, printed above it.
        columns: images side by side; more of them wrap into further bands of rows.
    """
    made = [(label, strips(np.asarray(images.cpu())), "black") for label, images in rows]
    if rows[0][1].ndim == 5:
        columns = max(1, 1536 // made[0][1].shape[-1])
    return save(tiles(made, captions, columns), path)


def layer_chart(layers: Sequence[Mapping[str, Any]], path: Path, title: str | None = None) -> Path:
    """Draw the SQNR of each layer's output over the depth: a line per role, a marker per layer.

    Args:
        layers: the record's `layers`: site, role, block (None outside the blocks), sqnr in dB.
        path: PNG to write.
        title: what stands above, such as the name of the run.
    """
    measured = [layer for layer in layers if layer.get("sqnr") is not None]
    blocks = [layer["block"] for layer in measured if layer.get("block") is not None]
    depth = max(blocks, default=-1) + 1
    roles = list(dict.fromkeys(str(layer["role"]) for layer in measured))
    figure, axes = axes_of(6.4, 3.4)
    for number, role in enumerate(roles):
        x, y = _by_role(measured, role, depth)
        colour, marker = look(number)
        axes.plot(x, y, linestyle="none", label=role, alpha=0.85, markeredgewidth=0, color=colour, marker=marker)
        means = {block: float(np.mean([b for a, b in zip(x, y, strict=True) if a == block])) for block in sorted({*x})}
        axes.plot(list(means), list(means.values()), color=colour, alpha=0.6, linewidth=1.2)
    outside = any(layer.get("block") is None for layer in measured)
    step = max(1, depth // 14)
    ticks = list(range(0, depth, step))
    axes.set_xticks([*ticks, depth] if outside else ticks, [*map(str, ticks), "outside"] if outside else None)
    axes.set(xlabel="block", ylabel="SQNR of the layer's output (dB)")
    finish(axes, title, bool(roles))
    return save(figure, path)


def group_map(groups: Sequence[Mapping[str, Any]], path: Path, title: str | None = None) -> Path:
    """Draw the group sizes that a search chose: a column per block, a row per kind of site, darker for larger groups.

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
    figure, axes = axes_of(1.6 + 0.38 * max(len(blocks), 8), 0.9 + 0.38 * len(kinds))
    axes.grid(visible=False)
    axes.imshow(cells, cmap="Blues", vmin=-1, vmax=len(sizes), aspect="auto")
    for (row, column), level in np.ndenumerate(cells):
        if not np.isnan(level):
            colour = "white" if level > len(sizes) / 2 else "black"
            axes.text(column, row, str(sizes[int(level)]), ha="center", va="center", color=colour, fontsize=7)
    axes.set_yticks(range(len(kinds)), [role for role, _ in kinds])
    axes.set_xticks(range(len(blocks)), ["other" if block is None else str(block) for block in blocks])
    axes.set_xlabel("block")
    finish(axes, title, legend=False)
    return save(figure, path)


def bit_map(bits: Sequence[Mapping[str, Any]], path: Path, title: str | None = None) -> Path:
    """Draw what a search for bits measured and chose: a row per site, a column per bit-width and range, dark is harm.

    Shades are of the logarithm of the loss within each group of sites, because groups have different metrics;
    a line parts them. A dot marks what was chosen. Bits that a group does not offer are left blank.

    Args:
        bits: the record's `search.bits`: site, group, bits in each range, and loss by bit-width and range.
        path: PNG to write.
        title: what stands above, such as the name of the run.
    """
    widths, ranges = sorted({width for row in bits for width in row["loss"]}, key=int), len(bits[0]["bits"])
    rows = sorted(bits, key=lambda row: row["group"])  # stable: forward order within a group
    blank = [np.nan] * ranges
    losses = np.array([[row["loss"].get(width, blank) for width in widths] for row in rows], dtype=float)
    losses = losses.reshape(len(rows), -1)
    least = losses[losses > 0].min(initial=1.0)
    shades = np.log10(np.where(losses <= 0, least, losses))
    groups = [row["group"] for row in rows]
    for group in dict.fromkeys(groups):
        own = np.array([name == group for name in groups])
        low, high = np.nanmin(shades[own]), np.nanmax(shades[own])
        shades[own] = (shades[own] - low) / (high - low or 1.0)
    figure, axes = axes_of(2.6 + 0.34 * max(losses.shape[1], 9), 1.1 + 0.17 * len(rows))
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
    axes.set_yticks(range(len(rows)), [shorten(row["site"], 44) for row in rows], fontsize=6)
    labels = [f"{width} bits\n{part + 1}" if part == 0 else str(part + 1) for width in widths for part in range(ranges)]
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlabel("range of timesteps, noisiest first; dots: chosen")
    finish(axes, title, legend=False)
    return save(figure, path)


def timestep_chart(curves: Mapping[str, Mapping[str, Any]], path: Path, title: str | None = None) -> Path:
    """Draw curves over the timestep in the order of sampling: noise on the left, image on the right.

    Args:
        curves: label → {x, y, stderr (optional), xlabel, ylabel}, as in the record's `curves`.
        path: PNG to write.
        title: what stands above.
    """
    figure, axes = axes_of(6.0, 3.4)
    for number, (label, curve) in enumerate(curves.items()):
        x, y = np.asarray(curve["x"], dtype=float), np.asarray(curve["y"], dtype=float)
        colour, marker = look(number)
        axes.plot(x, y, color=colour, marker=marker, label=label)
        if curve.get("stderr") is not None:
            band = 2 * np.asarray(curve["stderr"], dtype=float)
            axes.fill_between(x, y - band, y + band, color=colour, alpha=0.18, linewidth=0)
    first = next(iter(curves.values()), {})
    axes.invert_xaxis()
    axes.set(xlabel=f"{first.get('xlabel', 'timestep')} (sampling runs to the right)", ylabel=first.get("ylabel", ""))
    finish(axes, title, len(curves) > 1)
    return save(figure, path)


def frame_chart(curves: Mapping[str, Sequence[float]], path: Path, title: str | None = None) -> Path:
    """Draw paired metrics over the frames of clips, a panel each: errors grow with time, which a mean hides.

    Args:
        curves: label → the mean over clips at each frame, or step between frames. Of equal curves, as of a metric and
            of its worst frame, the first is drawn.
        path: PNG to write.
        title: what stands above, such as the name of the run.
    """
    distinct: dict[tuple[float, ...], str] = {}
    for label, values in curves.items():
        distinct.setdefault(tuple(values), label)
    figure, panels = panels_of(len(distinct), 0.6 + 2.4 * len(distinct), 2.4, sharey=False)
    for number, (axes, (values, label)) in enumerate(zip(panels, distinct.items(), strict=True)):
        colour, marker = look(number)
        axes.plot(range(len(values)), values, color=colour, marker=marker, markersize=3)
        axes.set(xlabel="frame", ylabel=label)
        finish(axes, title if number == 0 else None, legend=False)
    return save(figure, path)


def _by_role(layers: Sequence[Mapping[str, Any]], role: str, depth: int) -> tuple[list[int], list[float]]:
    chosen = [layer for layer in layers if layer["role"] == role]
    x = [depth if layer.get("block") is None else int(layer["block"]) for layer in chosen]
    return x, [float(layer["sqnr"]) for layer in chosen]
