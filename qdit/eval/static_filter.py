"""VBench's static filter: temporal flickering of the clips that stand still, by optical flow (RAFT).

Flicker is what changes between frames while nothing moves, so VBench samples many clips of each prompt (25 to 40, its
maintainers advise), drops those that move and keeps the first five. A clip moves by the flow between successive frames,
and between its first and last in both directions: the mean of the largest 2 % of the magnitudes, with the padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float
from torch import Tensor

from qdit.eval.base import OfFeatures, Samples, Shown
from qdit.eval.extractor.raft import LEAST, too_small
from qdit.eval.vbench.suite import VIDEOS_A_PROMPT, own_of
from qdit.eval.video import TemporalFlickering

FEWEST = 2  # clips of a prompt, below which nothing is left to choose from


def limit(side: float) -> float:
    """Pixels that count as motion in frames whose shorter side is `side`: half of the dynamic degree's.

    >>> limit(256), limit(480)
    (3.0, 5.625)
    """
    return 3 * side / 256


def allowed(frames: int) -> int:
    """How many steps of a clip of so many frames may move, as VBench rounds (half to even); none of up to four.

    >>> [allowed(frames) for frames in (2, 4, 8, 12, 16, 49)]
    [0, 0, 1, 2, 2, 6]
    """
    return round(2 * frames / 16)


def still(steps: Float[Tensor, "n steps"], ends: Float[Tensor, "n 2"], most: float, moving: int) -> Bool[Tensor, " n"]:
    """Which clips are static.

    Args:
        steps: scores of the flow between successive frames, in pixels.
        ends: of that from the first frame to the last, and back.
        most: above which a step moves.
        moving: steps that may; the ends may differ by twice as many times `most`.
    """
    return ((steps > most).sum(1) <= moving) & (ends <= 2 * moving * most).all(1)


def first_of_each(kept: Bool[Tensor, " n"], prompts: Sequence[str], count: int) -> Bool[Tensor, " n"]:
    """Of the samples that are kept, the first `count` of each prompt.

    >>> first_of_each(torch.tensor([True, False, True, True, True]), ["a", "a", "a", "a", "b"], 2).tolist()
    [True, False, True, False, True]
    """
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    member = torch.nn.functional.one_hot(torch.tensor([numbers[prompt] for prompt in prompts]), len(numbers))
    so_far = (member * kept[:, None]).cumsum(0)
    return kept & ((so_far * member).sum(1) <= count)


@dataclass(frozen=True, kw_only=True)
class StaticFlickering(OfFeatures, TemporalFlickering):
    """VBench's temporal flickering behind its static filter; `n` counts the clips that are kept.

    A difference to full precision is over the clips that are kept of both.

    Args:
        keep: clips of each prompt, the first that are static.
    """

    extractor: str = "raft_static"
    keep: Annotated[int, Ge(1)] = VIDEOS_A_PROMPT
    shown = Shown("flickering of static clips", digits=4)

    @property
    def scored(self) -> TemporalFlickering:
        """The values of steps are those without the filter."""
        return TemporalFlickering()

    def judges(self) -> str:
        """VBench's dimension."""
        return "temporal_flickering"

    def preflight(self, n: int | None = None, reference: object = None, image_size: int | None = None) -> list[str]:
        """What the network lacks, and frames that are too small for it."""
        small = [too_small(image_size)] if image_size is not None and image_size < LEAST else []
        return [*super().preflight(n, None, image_size), *small]

    def unreadable(self, prompts: Sequence[str]) -> list[str]:
        """A sentence if a prompt has so few samples that the filter leaves nothing to choose from."""
        own = [prompt for prompt, judged in zip(prompts, own_of(self.judges(), prompts), strict=True) if judged]
        fewest = min((own.count(prompt) for prompt in set(own)), default=FEWEST)
        if fewest >= FEWEST:
            return super().unreadable(prompts)
        return [
            f"the static filter chooses among the clips of a prompt, and one has {fewest}: VBench samples 25 of each, "
            f"and keeps the first {self.keep} that stand still; use temporal_flickering for all clips, moving or not"
        ]

    def judged(self, samples: Samples) -> Bool[Tensor, " n"]:
        """The first clips of each prompt that are static."""
        features = samples.features(self.extractor)
        steps, ends = features["top2"], features["ends"]
        kept = still(steps, ends, limit(float(features["side"].amin())), allowed(steps.shape[1] + 1))
        kept &= super().judged(samples)
        prompts = samples.clusters or samples.prompts
        return first_of_each(kept, prompts, self.keep) if prompts else kept
