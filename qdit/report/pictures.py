"""Samples as pictures in a page: those of a run in one WebP, a column a sample and, of clips, a row a frame.

A page shows one tile of it at a time, so that clips of several runs play in step and can be halted.
"""

import io
from base64 import b64encode
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qdit.plots.study import first_run, images
from qdit.plots.tiles import sized
from qdit.tables import select
from qdit.tables.differences import values
from qdit.tables.quantity import rank
from qdit.tables.summary import Summary

BUDGET = 2_000_000
"""Bytes of text that the pictures of a page take, together."""
MOST, CLIPS, FRAMES = 16, 8, 16  # images of a run, clips of a run, frames of a clip
WORST = 8
_WIDTHS = (128, 96, 64, 32)
_QUALITIES = (None, 97, 90, 75, 50)  # None is without loss

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Sheet:
    """Samples of a run as one picture: address, samples and frames in it, sides of one."""

    url: str
    count: int
    frames: int
    width: int
    height: int


def samples(summary: Summary, rows: list[select.Row], budget: int = BUDGET) -> dict[str, Any]:
    """What a page shows of samples.

    Args:
        summary: of the study.
        rows: those of the page, in its order.
        budget: bytes of text for all pictures.

    Returns:
        `sheets` by number of the row, `full` (of full precision, or None), `captions`, `without` (numbers of finished
        rows that keep no pictures), `judged` by number of the row: see `_judged`.
    """
    kept: dict[int, tuple[Images, list[str]]] = {}
    without = []
    for number, row in enumerate(rows):
        if row["runs"]:
            found = images(row)
            if found is None or not _drawable(found[0]):
                without.append(number)
            else:
                kept[number] = found[0][:MOST], found[1][:MOST]
    share = int(budget * 0.74 / max(1, len(kept)))
    sheets = {number: vars(sheet(shown, share)) for number, (shown, _) in kept.items()}
    full = next((number for number, row in enumerate(rows) if row["quantizer"] == select.FULL_PRECISION), None)
    captions = next((texts for _, texts in kept.values() if texts), [])
    judged = {number: found for number in kept if (found := _judged(summary, rows[number], len(kept[number][0])))}
    return {
        **{"sheets": sheets, "full": full if full in sheets else None, "captions": captions, "without": without},
        "judged": judged,
    }


def _drawable(shown: Images) -> bool:
    return shown.dtype == np.uint8 and shown.ndim in (4, 5) and shown.shape[-3] == 3 and shown.size > 0


def _judged(summary: Summary, row: select.Row, count: int) -> dict[str, Any] | None:
    """The sharpest paired metric with a direction that a run keeps of each sample, as its page shows it.

    Returns:
        `label`, `each` (values of the samples that have pictures), `worst` (which of these are, worst first) and
        `lowest` (sample and value of the worst of all); None where there is no such metric.
    """
    run = first_run(row)
    for metric in sorted(summary.metrics, key=lambda name: (rank(name), name)):
        if (found := values(run, metric)) is None or len(found) < count:
            continue
        quantity = summary.quantity(metric)
        if quantity.higher_is_better is None:  # no sample is the worst by it
            continue
        sign = 1 if quantity.higher_is_better else -1
        order = [int(place) for place in np.argsort(sign * found, kind="stable") if isfinite(found[place])]
        shown = [round(float(value) * quantity.factor, quantity.decimals) for value in found]
        return {
            "label": quantity.label,
            "each": [value if isfinite(value) else None for value in shown[:count]],
            "worst": [place for place in order if place < count][:WORST],
            "lowest": [[place, shown[place]] for place in order[:WORST]],
            "of": len(found),
        }
    return None


def sheet(shown: Images, share: int) -> Sheet:
    """Samples [n, 3, H, W], or clips [n, F, 3, H, W], as one WebP: as large and as exact as fits into `share` bytes."""
    if shown.ndim == 5:
        places = np.linspace(0, shown.shape[1] - 1, min(FRAMES, shown.shape[1])).round().astype(int)
        shown = shown[:CLIPS, places]
    clips = shown if shown.ndim == 5 else shown[:, None]
    count, frames, _, high, wide = clips.shape
    flat = clips.transpose(0, 1, 3, 4, 2).reshape(count * frames, high, wide, 3)
    data, tiles = b"", flat
    for width in _sides(wide):
        tiles = sized(flat, width) if width < wide else flat
        _, high, side, _ = tiles.shape
        grid = tiles.reshape(count, frames, high, side, 3).transpose(1, 2, 0, 3, 4).reshape(frames * high, -1, 3)
        for quality in _QUALITIES:
            data = _webp(grid, quality)
            if len(data) <= share:
                break
        if len(data) <= share:
            break
    url = f"data:image/webp;base64,{b64encode(data).decode()}"
    return Sheet(url, count, frames, tiles.shape[2], tiles.shape[1])


def _sides(wide: int) -> list[int]:
    """The widths of a tile to try: as it is where that is small, then less."""
    smaller = [width for width in _WIDTHS if width < wide]
    return smaller if wide > _WIDTHS[0] else [wide, *smaller]


def _webp(pixels: Images, quality: int | None) -> bytes:
    about: dict[str, Any] = {"lossless": True} if quality is None else {"quality": quality}
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "webp", method=4, **about)
    return file.getvalue()
