"""Samples in pieces of a few frames: how they are cut, decoded, and gathered into features.

So an extractor sees images only, and the memory that a clip takes does not grow with its length, where an autoencoder
decodes frame by frame.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from qdit.errors import UserError
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


def decoded(latents: Tensor, decode: Callable[[Tensor], Tensor], framewise: bool = True) -> Iterator[Piece]:
    """Pieces of a chunk of latents, of images [b, C, h, w] or clips [b, C, T, h, w].

    Args:
        latents: of the samples.
        decode: latents -> pixels.
        framewise: whether a clip's frames are decoded independently, whichever come together. If not, clips are decoded
            whole, one at a time, and then cut.
    """
    if latents.ndim == 4:
        yield from cut([decode(latents)])
        return
    if not framewise:
        yield from cut(map(decode, latents.split(1)))
        return
    for rows, start, stop in spans(len(latents), latents.shape[2]):
        yield Piece(decode(latents[rows, :, start:stop]), start, stop == latents.shape[2])


def first_of(pieces: Iterable[Piece], count: int) -> UInt8[Tensor, "n k 3 H W"]:
    """The first samples of these pieces, of which no more are made than are needed."""
    rows: list[Tensor] = []
    row: list[Tensor] = []
    for piece in pieces:
        row.append(piece.frames)
        if not piece.last:
            continue
        rows.append(torch.cat(row, 1))
        row = []
        if sum(map(len, rows)) >= count:
            break
    return torch.cat(rows)[:count]


@dataclass
class Windows:
    """Hands on frames with those neighbours before them that a piece has not: `window - 1`, or, for None, all."""

    window: int | None
    waiting: tuple[Tensor, ...] = ()

    def next(self, last: bool, *streams: Tensor) -> tuple[Tensor, ...] | None:
        """The next frames [b, k, …] of each stream, with their neighbours; None where there are still too few."""
        if self.waiting:
            streams = tuple(torch.cat(pair, 1) for pair in zip(self.waiting, streams, strict=True))
        keep = None if self.window is None else self.window - 1
        ready = last if self.window is None else streams[0].shape[1] >= self.window
        done = last or keep == 0
        self.waiting = () if done else tuple(stream[:, -keep:] if keep else stream for stream in streams)
        return streams if ready else None


@dataclass
class Collected:
    """The features that an extractor finds, as pieces come: of images, or of an extractor's `window` of frames."""

    extract: Callable[[Tensor], Features]
    row: list[Features] = field(default_factory=list)
    rows: list[Features] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Ask the extractor how many frames it reads together."""
        self.window: int | None = getattr(self.extract, "window", 1)
        self.windows = Windows(self.window)

    def read(self, piece: Piece) -> None:
        """Extract the next frames.

        Raises:
            UserError: the clips are shorter than the window.
        """
        if (ready := self.windows.next(piece.last, piece.frames)) is not None:
            self.row.append(self._found(ready[0]))
        if piece.last:
            if not self.row:
                raise UserError(f"clips of {piece.frames.shape[1]} frames are too short: {self.window} are needed")
            whole = {name: torch.cat([part[name] for part in self.row], 1) for name in self.row[0]}
            image = piece.frames.shape[1] == 1 and piece.start == 0
            self.rows.append({name: values[:, 0] if image else values for name, values in whole.items()})
            self.row = []

    def _found(self, frames: Tensor) -> Features:
        """Features of frames [b, k, …], as [b, values, …]."""
        if self.window != 1:
            return self.extract(frames)
        found = self.extract(frames.flatten(0, 1))
        return {name: values.unflatten(0, frames.shape[:2]) for name, values in found.items()}

    def finish(self) -> Features:
        """Features by name: [n, D] of images, [n, T, D] of clips, [n, T - 1] of steps."""
        return {name: torch.cat([part[name] for part in self.rows]) for name in self.rows[0]}


def read_prompts(extract: Any, prompts: Sequence[str]) -> Tensor:
    """Features [n, D] of prompts by an extractor that reads text, of which each is read once."""
    order = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    return extract.texts(list(order))[[order[prompt] for prompt in prompts]]


def collected(extract: Callable[[Tensor], Features], pieces: Iterable[Piece]) -> Features:
    """`Collected` features of all pieces."""
    found = Collected(extract)
    for piece in pieces:
        found.read(piece)
    return found.finish()
