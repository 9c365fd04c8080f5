"""Rows of images above each other: a column is one noise and class, a row one model."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from qdit.plots.style import shorten, text_at

Images = NDArray[np.uint8]
"""RGB pictures, [n, 3, H, W]."""
_GAP = 6  # pixels between tiles
_LABEL = 12.5  # pixels of letters
_DPI = 72  # where a pixel is a point: files of vectors place images by points


def tiles(
    rows: Sequence[tuple[str, Images, str]],
    captions: Sequence[str] | None = None,
    columns: int = 8,
    width: int | None = None,
) -> Figure:
    """Draw rows of images, pixel for pixel where they are not shrunk.

    Args:
        rows: label, images and colour of the label of each row; all rows have the same n, H and W.
        captions: one for each of the n columns, printed above it.
        columns: images side by side; more of them wrap into further bands of rows.
        width: of a tile, in pixels: small images grow by whole pixels up to about it, and larger ones shrink; None for
            96, and larger ones stay.
    """
    images = [sized(row.transpose(0, 2, 3, 1), width) for _, row, _ in rows]
    count, tile_h, tile_w, _ = images[0].shape
    per_band, bands = min(columns, count), ceil(count / columns)
    letters = [TextPath((0, 0), label, size=_LABEL).get_extents().width for label, _, _ in rows if label]
    left, head = 14 + ceil(1.1 * max(letters, default=0)), 24 if captions else 8  # advances are whole pixels
    band_h = head + len(rows) * (tile_h + _GAP) + 6
    canvas_w, canvas_h = left + per_band * (tile_w + _GAP) + 8, bands * band_h + 4
    figure = Figure(figsize=(canvas_w / _DPI, canvas_h / _DPI), dpi=_DPI, facecolor="white")
    for index in range(count):
        band, column = divmod(index, per_band)
        x = left + column * (tile_w + _GAP)
        top = canvas_h - band * band_h - head
        if captions:
            text = shorten(captions[index], tile_w // 6)
            text_at(figure, x + tile_w / 2, top + 6, text, ha="center", va="bottom", color="#444444", fontsize=11)
        for number, (label, _, colour) in enumerate(rows):
            y = top - number * (tile_h + _GAP)
            figure.figimage(images[number][index], x, y - tile_h, origin="upper")
            if column == 0:
                text_at(figure, left - 8, y - tile_h / 2, label, ha="right", va="center", fontsize=_LABEL, color=colour)
    return figure


def strips(images: Images, side: int = 128, most: int = 16) -> Images:
    """Images [n, 3, H, W] as they are; clips [n, F, 3, H, W] with frames side by side, [n, 3, h, f w].

    Frames wider than `side` shrink by whole pixels, and of more than `most` some are left out, evenly; never the first
    and the last.
    """
    if images.ndim == 4:
        return images
    images = images[:, np.linspace(0, images.shape[1] - 1, min(most, images.shape[1])).round().astype(int)]
    count, frames, _, high, wide = images.shape
    by = ceil(wide / side)
    high, wide = high // by, wide // by
    blocks = images[..., : high * by, : wide * by].reshape(count, frames, 3, high, by, wide, by)
    small = blocks.mean((4, 6)).round().astype(np.uint8)
    return small.transpose(0, 2, 3, 1, 4).reshape(count, 3, high, frames * wide)


def sized(images: NDArray[np.uint8], width: int | None) -> NDArray[np.uint8]:
    """Images [n, H, W, 3] grown by whole pixels, or shrunk by means of whole pixels."""
    _, high, wide, _ = images.shape
    grow = max(1, round((width or 96) / wide))
    shrink = max(1, round(wide / width)) if width else 1
    if shrink > 1 and high % shrink == wide % shrink == 0:
        blocks = images.reshape(len(images), high // shrink, shrink, wide // shrink, shrink, 3)
        return blocks.mean((2, 4)).round().astype(np.uint8)
    return images.repeat(grow, axis=1).repeat(grow, axis=2)
