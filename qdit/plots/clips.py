"""Clips that play: rows of samples above each other, full precision first, as a video.

`samples.mp4` needs an encoder, PyAV of the extra `qdit[video]`. Without it an animated PNG is written, which browsers
play and which keeps every pixel. Imports no torch.
"""

import io
from collections.abc import Sequence
from importlib.util import find_spec
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from qdit.plots.style import shorten
from qdit.plots.tiles import sized
from qdit.storage.atomic import atomic_write
from qdit.storage.videos import encode

FPS = 8  # what Latte's clips are shown at
COLUMNS, BANDS, WIDTH = 4, 2, 192  # clips side by side, rows of them, and about so many pixels of each
VIDEO, ANIMATION = "samples.mp4", "samples_moving.png"
_GAP, _HEAD = 6, 20  # pixels between tiles, and above them
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)

Clips = NDArray[np.uint8]
"""RGB clips, [n, F, 3, H, W]."""


def play(rows: Sequence[tuple[str, Clips]], folder: Path, captions: Sequence[str] | None = None) -> Path:
    """Write `samples.mp4`, or `samples_moving.png` where no encoder is; what the other way left is removed.

    Args:
        rows: label and clips of each row; all rows have the same shape.
        folder: where the file goes.
        captions: one for each clip, printed above it.

    Raises:
        UserError: the file cannot be written.
    """
    encodes = find_spec("av") is not None
    path, other = folder / (VIDEO if encodes else ANIMATION), folder / (ANIMATION if encodes else VIDEO)
    shown = frames(rows, captions)
    atomic_write(path, mp4(shown) if encodes else animated(shown))
    other.unlink(missing_ok=True)
    return path


def frames(rows: Sequence[tuple[str, Clips]], captions: Sequence[str] | None = None) -> list[NDArray[np.uint8]]:
    """The frames [H, W, 3] of a video of some clips; sides are even, as encoders want them."""
    shown = [clips[: COLUMNS * BANDS] for _, clips in rows]
    count, length = shown[0].shape[:2]
    tiles = [sized(row.transpose(0, 1, 3, 4, 2).reshape(-1, *row.shape[3:], 3), WIDTH) for row in shown]
    tiles = [row.reshape(count, length, *row.shape[1:]) for row in tiles]
    high, wide = tiles[0].shape[2:4]
    font = ImageFont.load_default(12)
    left = 12 + ceil(max(font.getlength(label) for label, _ in rows))
    band = _HEAD + len(rows) * (high + _GAP)
    height, width = ceil(count / COLUMNS) * band + _GAP, left + min(count, COLUMNS) * (wide + _GAP)
    page = Image.new("RGB", (width + width % 2, height + height % 2), _WHITE)
    pen = ImageDraw.Draw(page)
    corners = {}
    for clip in range(count):
        across, down = clip % COLUMNS, clip // COLUMNS
        x, y = left + across * (wide + _GAP), down * band + _HEAD
        corners[clip] = x, y
        if captions:
            pen.text((x, y - 16), shorten(captions[clip], wide // 7), _BLACK, font)
        if across == 0:
            for number, (label, _) in enumerate(rows):
                pen.text((6, y + number * (high + _GAP) + high // 2 - 7), label, _BLACK, font)
    still, found = np.array(page), []
    for time in range(length):
        frame = still.copy()
        for clip, (x, y) in corners.items():
            for number, row in enumerate(tiles):
                top = y + number * (high + _GAP)
                frame[top : top + high, x : x + wide] = row[clip, time]
        found.append(frame)
    return found


def mp4(shown: Sequence[NDArray[np.uint8]]) -> bytes:
    """A video of frames [H, W, 3], in H.264 and nearly without loss."""
    return encode(shown, FPS, crf=12)


def animated(shown: Sequence[NDArray[np.uint8]]) -> bytes:
    """An animated PNG of frames [H, W, 3], which repeats."""
    file, images = io.BytesIO(), [Image.fromarray(frame) for frame in shown]
    images[0].save(file, "png", save_all=True, append_images=images[1:], duration=1000 // FPS, loop=0)
    return file.getvalue()
