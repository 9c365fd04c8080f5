"""Metrics of clips that need no weights, or those of an extractor. Image models are refused before any sampling.

`temporal_flickering` is VBench's (Huang et al., arXiv 2311.17982). The others are substitutes, and named as what they
are: `motion_smoothness_blend` interpolates by the mean of two frames where VBench uses AMT-S, and
`subject_consistency_lite0` has EfficientNet's features where VBench has DINO's. A frozen or collapsed clip maximises
flickering, smoothness and consistency: read them only beside `motion_energy` and PSNR .
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import OfFeatures, Samples, Shown
from qdit.eval.frames import FrameMetric, PairedFrames
from qdit.eval.per_sample import PairedMetric, PerSample

CLIPS = ("video",)


def _steps(frames: UInt8[Tensor, "b k 3 H W"]) -> Float[Tensor, "b k-1 3 H W"]:
    """Differences of successive frames, in grey levels."""
    return frames.to(torch.int16).diff(dim=1).double()


class TemporalFlickering(FrameMetric):
    """(255 - mean |frame t+1 - frame t|) / 255, a dimension of VBench without weights (arXiv 2311.17982)."""

    higher_is_better = True
    window = 2
    shown = Shown("flickering", digits=4)

    def score(self, frames: UInt8[Tensor, "b k 3 H W"], *reference: Tensor) -> Float[Tensor, "b k-1"]:
        """The score of each step."""
        return 1 - _steps(frames).abs().mean((2, 3, 4)) / 255


@dataclass(frozen=True, kw_only=True)
class MotionEnergy(FrameMetric):
    """Mean squared difference of successive frames, of pixels in [0, 1]: 0 for a frozen clip.

    Neither more nor less is better; what counts is the difference to full precision.
    """

    higher_is_better = None
    window = 2
    shown = Shown("motion energy", "·10³", 2, 1e3)

    def score(self, frames: UInt8[Tensor, "b k 3 H W"], *reference: Tensor) -> Float[Tensor, "b k-1"]:
        """The energy of each step."""
        return (_steps(frames) / 255).square().mean((2, 3, 4))


@dataclass(frozen=True, kw_only=True)
class MotionSmoothnessBlend(FrameMetric):
    """How well the mean of its neighbours, truncated to uint8, predicts every second frame: (255 - mean |error|) / 255.

    VBench's motion_smoothness with a blend in the place of its interpolating network, so never under that name.
    """

    higher_is_better = True
    window = 3
    shown = Shown("smoothness (blend)", digits=4)

    def score(self, frames: UInt8[Tensor, "b k 3 H W"], *reference: Tensor) -> Float[Tensor, "b k-2"]:
        """The score of each frame but the first and the last."""
        whole = frames.to(torch.int16)
        blend = (whole[:, :-2] + whole[:, 2:]) // 2
        return 1 - (whole[:, 1:-1] - blend).abs().double().mean((2, 3, 4)) / 255

    def reduced(self, values: Float[Tensor, "n T-2"]) -> Float[Tensor, " n"]:
        """The mean over frames 1, 3, 5, …, as VBench keeps the even ones; of an even length the last is unused."""
        return values[:, ::2].mean(1)


@dataclass(frozen=True, kw_only=True)
class TemporalDifferenceError(PairedFrames):
    """mean |(frame t+1 - frame t) - the same of full precision|, in grey levels: flicker that PSNR averages away."""

    modalities = CLIPS
    higher_is_better = False
    window = 2
    shown = Shown("temporal error", " (levels)", 2)

    def score(self, frames: UInt8[Tensor, "b k 3 H W"], *reference: Tensor) -> Float[Tensor, "b k-1"]:
        """The error of each step."""
        return (_steps(frames) - _steps(reference[0])).abs().mean((2, 3, 4))


def frame_consistency(features: Float[Tensor, "n T D"]) -> Float[Tensor, " n"]:
    """Mean over t ≥ 1 of ½ (max(0, cos(z_t, z_{t-1})) + max(0, cos(z_t, z_0))), in float64, as VBench has it."""
    z = F.normalize(features.double(), dim=2)
    before = (z[:, 1:] * z[:, :-1]).sum(2).clamp(min=0)
    first = (z[:, 1:] * z[:, :1]).sum(2).clamp(min=0)
    return ((before + first) / 2).mean(1)


@dataclass(frozen=True, kw_only=True)
class FrameConsistency(OfFeatures, PerSample):
    """How alike the frames of a clip are to their predecessor and to the first, by an extractor's features.

    With `dino` VBench's subject consistency, with `clip_b32_vbench` its background consistency (in which no background
    is looked for), with `lite0` a substitute for the first. VBench averages these two over all frames of all videos;
    here, as everywhere, each clip counts once.
    """

    modalities = CLIPS
    higher_is_better = True
    shown = Shown(digits=4)

    @property
    def fewest_frames(self) -> int:
        """A frame, and one before it."""
        return 2

    def judges(self) -> str | None:
        """The dimension of VBench, with its extractor."""
        return {"dino": "subject_consistency", "clip_b32_vbench": "background_consistency"}.get(self.extractor)

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """`frame_consistency` of the pooled features.

        Raises:
            UserError: the clips have one frame, whose features are an image's.
        """
        pooled = samples.features(self.extractor)["pooled"]
        if short := self.short(pooled.shape[1] if pooled.ndim == 3 else 1):
            raise UserError(f"{type(self).__name__}: {short[0]}")
        return frame_consistency(pooled)


@dataclass(frozen=True, kw_only=True)
class FeatureDistance(OfFeatures, PairedMetric):
    """1 - cosine of a sample's pooled features and full precision's, of a clip the mean over its frames.

    A weightless stand-in for LPIPS, under its own name: features of the whole image, not of patches.
    """

    higher_is_better = False
    shown = Shown(None, "·10³", 2, 1e3)

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The distance of each pair."""
        own, full = (s.features(self.extractor)["pooled"].double() for s in (samples, full_precision))
        return 1 - F.cosine_similarity(own, full, dim=-1).reshape(len(own), -1).mean(1)
