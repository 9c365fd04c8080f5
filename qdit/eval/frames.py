"""Metrics of decoded frames: one pass over the samples feeds them all, in pieces, so that clips may be of any length.

Decoding costs more than any of these metrics, so it is done once: `survey` reads the samples, and those of full
precision beside them, and keeps each metric's values as long as both sets exist. A metric is a pure function of a few
neighbouring frames (`window`), which gives a value for each frame or step; `reduced` makes one of them.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import Metric, Piece, Samples
from qdit.eval.per_sample import PairedMetric, PerSample
from qdit.eval.pieces import Windows


@dataclass(frozen=True, kw_only=True)
class FrameMetric(PerSample):
    """A metric of decoded frames; see the module."""

    modalities = ("video",)
    window: ClassVar[int | None] = 1
    """Frames that a value is made of, neighbours of each other; None: the whole clip."""

    @property
    def fewest_frames(self) -> int:
        """As many as a value is made of."""
        return self.window or 1

    @property
    def scored(self) -> Hashable:
        """What tells its values apart: metrics that make their numbers of the same ones say the same."""
        return self

    @abstractmethod
    def score(self, frames: UInt8[Tensor, "b k 3 H W"], *reference: Tensor) -> Float[Tensor, "b values"]:
        """The value of each `window` of neighbouring frames; a paired metric gets full precision's frames, too."""

    def reduced(self, values: Float[Tensor, "n values"]) -> Float[Tensor, " n"]:
        """One value of those of each clip: their mean."""
        return values.mean(1)

    def values(self, samples: Samples, full_precision: Samples) -> Float[Tensor, "n values"]:
        """`score` of all samples, from the pass that read them."""
        survey([self], samples, full_precision)
        return _kept(samples, full_precision if self.paired else samples)[self.scored]

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """`reduced` values."""
        return self.reduced(self.values(samples, full_precision))

    def by_frame(self, samples: Samples, full_precision: Samples) -> list[float] | None:
        """The mean over clips of each value."""
        values = self.values(samples, full_precision)
        return values.mean(0).tolist() if values.shape[1] > 1 else None


@dataclass(frozen=True, kw_only=True)
class PairedFrames(FrameMetric, PairedMetric):
    """A metric of frames beside full precision's, of images and of clips."""

    modalities = ("image", "video")


_SEEN: WeakKeyDictionary[Samples, WeakKeyDictionary[Samples, dict[Hashable, Tensor]]] = WeakKeyDictionary()


def _kept(samples: Samples, other: Samples) -> dict[Hashable, Tensor]:
    """The values by `scored` that are known of two sets, which are forgotten with them."""
    return _SEEN.setdefault(samples, WeakKeyDictionary()).setdefault(other, {})


@dataclass
class _Reading:
    """One metric in the middle of a pass, and the values found so far."""

    metric: FrameMetric
    row: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Ask the metric how many frames it reads together."""
        self.windows = Windows(self.metric.window)

    def read(self, *pieces: Piece) -> None:
        """Take the next frames of the samples, and of full precision's if the metric is paired.

        Raises:
            UserError: the clips are shorter than the window.
        """
        last = pieces[0].last
        if (ready := self.windows.next(last, *(piece.frames for piece in pieces))) is not None:
            ready = [frames.cpu() if frames.device.type == "mps" else frames for frames in ready]  # it has no float64
            self.row.append(self.metric.score(*ready).cpu())  # as features are
        if last:
            if not self.row:
                needed = self.metric.window
                raise UserError(f"{type(self.metric).__name__} needs clips of {needed} frames, these have fewer")
            self.rows.append(torch.cat(self.row, 1))
            self.row = []


def survey(metrics: Iterable[Metric], samples: Samples, full_precision: Samples) -> None:
    """Read samples, and full precision's, once for all of these metrics; features that are stored are made, too.

    Raises:
        UserError: the two sets differ in their frames' shapes, or a metric cannot be computed of them.
    """
    chosen = list(metrics)
    sets = (samples,) if samples is full_precision else (samples, full_precision)
    readings: list[tuple[_Reading, tuple[int, ...]]] = []
    for metric in {m.scored: m for m in chosen if isinstance(m, FrameMetric)}.values():
        pairs = [(0, len(sets) - 1)] if metric.paired else [(number,) for number in range(len(sets))]
        readings += [(_Reading(metric), of) for of in pairs if metric.scored not in _kept(sets[of[0]], sets[of[-1]])]
    extractors = sorted({m.extractor for m in chosen if m.extractor})
    streams = []
    for each in reversed(sets):
        wanted = each.missing(extractors)
        if wanted and not readings:  # nothing else looks at the frames
            deque(each.pieces(wanted), maxlen=0)
        elif readings:
            streams.append(each.pieces(wanted))
    for pieces in zip(*streams, strict=True):
        own = pieces[::-1]
        _check(own)
        for reading, of in readings:
            reading.read(*(own[number] for number in of))
    for reading, of in readings:
        _kept(sets[of[0]], sets[of[-1]])[reading.metric.scored] = torch.cat(reading.rows)


def _check(pieces: Sequence[Piece]) -> None:
    """Refuse frames of another shape than full precision's."""
    own, full = pieces[0].frames, pieces[-1].frames
    if own.shape != full.shape:
        sizes = [" × ".join(map(str, each.shape[-2:])) for each in (own, full)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"images of {sizes[0]} pixels cannot be paired with images of {sizes[1]}; both need one size"
            )
        raise UserError(f"clips cannot be paired: {own.shape[1]} frames beside {full.shape[1]}: make them alike")
    if pieces[0].last != pieces[-1].last:
        raise UserError(f"clips cannot be paired: of {pieces[0].start + own.shape[1]} frames of one more are to come")
