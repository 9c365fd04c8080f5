"""Samples in pieces of a few frames: how they are cut, decoded, and gathered into features.

So an extractor sees images only, and the memory that a clip takes does not grow with its length.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qdit.eval.base import Features, Piece

FRAMES = 8
"""Frames of a piece of clips: fewer than clips have, so that longer ones take no more memory."""


def spans(clips: int, length: int) -> Iterator[tuple[slice, int, int]]:
    """Which clips, and from which frame to which, make the pieces of `clips` of equal length, in order.

    >>> list(spans(3, 4)), list(spans(1, 12))
    ([(slice(0, 2, None), 0, 4), (slice(2, 4, None), 0, 4)], [(slice(0, 1, None), 0, 8), (slice(0, 1, None), 8, 12)])
    """
    together = max(1, FRAMES // length)
    for first in range(0, clips, together):
        for start in range(0, length, FRAMES):
            yield slice(first, first + together), start, min(start + FRAMES, length)


def cut(images: Iterable[Tensor]) -> Iterator[Piece]:
    """Pieces of decoded chunks: images [b, 3, H, W] in one, clips [b, T, 3, H, W] some frames at a time."""
    for chunk in images:
        if chunk.ndim == 4:
            yield Piece(chunk[:, None], 0, True)
            continue
        for rows, start, stop in spans(len(chunk), chunk.shape[1]):
            yield Piece(chunk[rows, start:stop], start, stop == chunk.shape[1])


def decoded(latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Iterator[Piece]:
    """Pieces of a chunk of latents, of images [b, C, h, w] or clips [b, C, T, h, w].

    Args:
        latents: of the samples.
        decode: latents -> pixels; a clip's frames are decoded independently, whichever come together.
    """
    if latents.ndim == 4:
        yield from cut([decode(latents)])
        return
    for rows, start, stop in spans(len(latents), latents.shape[2]):
        yield Piece(decode(latents[rows, :, start:stop]), start, stop == latents.shape[2])


@dataclass
class Collected:
    """The features that an extractor finds of images, as their pieces come."""

    extract: Callable[[Tensor], Features]
    row: list[Features] = field(default_factory=list)
    rows: list[Features] = field(default_factory=list)

    def read(self, piece: Piece) -> None:
        """Extract the next frames."""
        b, k = piece.frames.shape[:2]
        found = self.extract(piece.frames.flatten(0, 1))
        self.row.append({name: values.unflatten(0, (b, k)) for name, values in found.items()})
        if piece.last:
            whole = {name: torch.cat([part[name] for part in self.row], 1) for name in found}
            image = k == 1 and len(self.row) == 1
            self.rows.append({name: values[:, 0] if image else values for name, values in whole.items()})
            self.row = []

    def finish(self) -> Features:
        """Features by name: [n, D] of images, [n, T, D] of clips."""
        return {name: torch.cat([part[name] for part in self.rows]) for name in self.rows[0]}


def collected(extract: Callable[[Tensor], Features], pieces: Iterable[Piece]) -> Features:
    """`Collected` features of all pieces."""
    found = Collected(extract)
    for piece in pieces:
        found.read(piece)
    return found.finish()
