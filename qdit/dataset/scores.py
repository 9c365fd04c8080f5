"""Does a sample of the embedded text models show what its prompt asked for? Exact scores, without further weights.

`emoji_match`: the nearest of all emoji, by features, is the one that the prompt names (a retrieval score).
`motion_match`: the motion that explains a clip best (`qdit.dataset.motion`) is the one in its prompt; true clips score
1, chance is 1/12. `motion_error` is the error that the motion asked for leaves. An emoji that looks the same after a
quarter turn gives no hint of turning, so that "turns" reads as "stands still".
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from qdit.assets import shipped
from qdit.dataset.captions import base_emoji
from qdit.dataset.emoji import FILE
from qdit.dataset.motion import FRAMES, PHRASES, SIDE, phrase_errors
from qdit.errors import Advised, UserError
from qdit.eval.base import OfFeatures, Samples, Shown, no_prompts
from qdit.eval.frames import FrameMetric
from qdit.eval.match import ranks
from qdit.eval.per_sample import PerSample
from qdit.eval.reference import find
from qdit.quant.decibels import decibels
from qdit.storage.arrays import read_arrays


def _foreign(problem: str, dataset: str) -> Advised:
    """The sentence that a prompt is not one of a data set."""
    return Advised(problem, run=f"use dataset={dataset}", folder=f"--prompts has those of dataset={dataset} alone")


def phrase_of(prompt: str) -> int | None:
    """The number of the motion that a prompt ends with.

    >>> phrase_of("rocket moves up"), phrase_of("rocket")
    (3, None)
    """
    return next((number for number, phrase in enumerate(PHRASES) if prompt.endswith(f" {phrase}")), None)


@dataclass(frozen=True, kw_only=True)
class _Motion(FrameMetric):
    """The errors of all motions, of which a score is made."""

    window = None  # a motion is seen in the whole clip

    @property
    def scored(self) -> Hashable:
        """The errors of all motions, whichever score is made of them."""
        return _Motion

    def preflight(self, n: int | None = None, reference: object = None, image_size: int | None = None) -> list[str]:
        """Frames of another size than the embedded clips'."""
        if image_size in (None, SIDE):
            return []
        return [f"motions are read off clips of {FRAMES} frames of {SIDE} px, these have {image_size} px"]

    def unreadable(self, prompts: Sequence[str]) -> list[str]:
        """Prompts that name no motion."""
        if not prompts:
            return [no_prompts("motions are asked for by prompts, and no prompts are known")]
        bad = next((p for p in prompts if phrase_of(p) is None), None)
        return [] if bad is None else [_foreign(f"the prompt {bad!r} names no motion", "emoji_motions")]

    def score(self, frames: UInt8[Tensor, "b T 3 H W"], *reference: Tensor) -> Float[Tensor, "b M"]:
        """The mean squared error of each motion.

        Raises:
            UserError: the clips are no embedded ones.
        """
        if frames.shape[1:] != (FRAMES, 3, SIDE, SIDE):
            found = "×".join(map(str, frames.shape[1:]))
            raise UserError(f"motions are read off clips of {FRAMES} frames of {SIDE}×{SIDE} px, these are {found}")
        return phrase_errors(frames.cpu().float() / 255)

    def asked(self, samples: Samples) -> Int[Tensor, " n"]:
        """The motion of each prompt.

        Raises:
            UserError: a prompt names none.
        """
        if problems := self.unreadable(samples.prompts):
            raise UserError(*problems)
        return torch.tensor([phrase_of(prompt) for prompt in samples.prompts])


@dataclass(frozen=True, kw_only=True)
class MotionMatch(_Motion):
    """The share of clips whose motion is the one asked for."""

    higher_is_better = True
    shown = Shown("motion match")

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """1 for a match, else 0."""
        return (self.values(samples, full_precision).argmin(1) == self.asked(samples)).double()


@dataclass(frozen=True, kw_only=True)
class MotionError(_Motion):
    """What the motion asked for leaves unexplained: 10 log10 of the mean squared error of pixels in [0, 1], dB."""

    higher_is_better = False
    shown = Shown("motion error", " (dB)", 1)

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The error of each clip."""
        errors = self.values(samples, full_precision).double()
        own = errors.gather(1, self.asked(samples)[:, None])[:, 0]
        return -decibels(torch.ones_like(own), own)


@cache
def _bank(extractor: str) -> tuple[Tensor, dict[str, int]]:
    """Features of the emoji without skin tones, and where each name is, the first of two alike."""
    reference = find("emoji", extractor, Path())
    names = [str(name) for name in read_arrays(FILE, ("names",), "reinstall qdit")[0]]
    wanted = set(base_emoji()[1])
    first = {name: number for number, name in reversed(list(enumerate(names))) if name in wanted}
    return reference.features()[list(first.values())], {name: number for number, name in enumerate(first)}


@dataclass(frozen=True, kw_only=True)
class EmojiMatch(OfFeatures, PerSample):
    """The share of images whose prompt names one of the `top` nearest of all emoji, by cosine of pooled features."""

    modalities = ("image",)
    higher_is_better = True
    shown = Shown(digits=3)
    top: int = 1

    def preflight(self, n: int | None = None, reference: object = None, image_size: int | None = None) -> list[str]:
        """No features of the emoji by this extractor."""
        own = super().preflight(n, None, image_size)
        return own if shipped("emoji", self.extractor) else [*own, f"no {self.extractor} features of emoji are shipped"]

    def unreadable(self, prompts: Sequence[str]) -> list[str]:
        """Prompts that are no names of emoji."""
        known = set(base_emoji()[1])
        if not prompts:
            return [no_prompts("emoji are asked for by prompts, and no prompts are known")]
        bad = next((p for p in prompts if p not in known), None)
        return [] if bad is None else [_foreign(f"the prompt {bad!r} is no emoji's name", "emoji_prompts")]

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """1 for a match, else 0.

        Raises:
            UserError: a prompt is no emoji's name.
        """
        if problems := self.unreadable(samples.prompts):
            raise UserError(*problems)
        bank, places = _bank(self.extractor)
        asked = torch.tensor([places[prompt] for prompt in samples.prompts])
        return (ranks(samples.features(self.extractor)["pooled"], bank, asked) < self.top).double()
