"""Motion of clips by optical flow (RAFT): VBench's dynamic degree, EvalCrafter's flow score and warping error."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import OfFeatures, Samples, Shown
from qdit.eval.extractor.raft import LEAST, too_small
from qdit.eval.per_sample import PerSample


def threshold(side: float) -> float:
    """Pixels that count as motion in frames whose shorter side is `side`.

    >>> threshold(256), threshold(480)
    (6.0, 11.25)
    """
    return 6 * side / 256


def wanted_steps(frames: int) -> int:
    """How many steps must move for a clip of so many frames to be dynamic, as VBench rounds (half to even).

    >>> [wanted_steps(frames) for frames in (2, 6, 8, 10, 16, 49)]
    [0, 2, 2, 2, 4, 12]
    """
    return round(4 * frames / 16)


def dynamic(top5: Float[Tensor, "n steps"], side: float) -> Bool[Tensor, " n"]:
    """Which clips are dynamic, by the mean of the largest 5 % of each step's flow.

    Raises:
        UserError: clips of two frames, which VBench's rule always calls dynamic.
    """
    if top5.shape[1] < 2:
        raise UserError("dynamic_degree needs clips of three frames or more: of two, every clip would count as dynamic")
    return (top5 > threshold(side)).sum(1) >= wanted_steps(top5.shape[1] + 1)


@dataclass(frozen=True, kw_only=True)
class FlowMetric(OfFeatures, PerSample):
    """A value of the flow of a clip's steps."""

    modalities = ("video",)

    @property
    def fewest_frames(self) -> int:
        """Those of a step."""
        return 2

    def preflight(self, n: int | None = None, reference: object = None, image_size: int | None = None) -> list[str]:
        """What the network lacks, and frames that are too small for it."""
        small = [too_small(image_size)] if image_size is not None and image_size < LEAST else []
        return [*super().preflight(n, None, image_size), *small]


@dataclass(frozen=True, kw_only=True)
class DynamicDegree(FlowMetric):
    """VBench's dynamic degree: the share of clips in which enough steps move.

    All frames are kept, as VBench does of clips of up to 11 frames a second; it thins out faster ones, which a run is
    therefore refused with (`fastest`): VBench's own code judges them.
    """

    fastest = 11
    higher_is_better = True
    shown = Shown(digits=3)

    @property
    def fewest_frames(self) -> int:
        """Of two frames, every clip would count as dynamic."""
        return 3

    def judges(self) -> str:
        """VBench's dimension."""
        return "dynamic_degree"

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """1 for a dynamic clip, else 0."""
        features = samples.features(self.extractor)
        return dynamic(features["top5"], float(features["side"].amin())).double()


@dataclass(frozen=True, kw_only=True)
class FlowScore(FlowMetric):
    """EvalCrafter's flow score: the mean magnitude of the flow, in pixels a step, not normalised by size or time.

    Neither more nor less is better; the papers' ΔFlow is the difference of two such means.
    """

    higher_is_better = None
    shown = Shown(None, " (px)", 2)

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The mean of each clip."""
        return samples.features(self.extractor)["mean"].double().mean(1)


@dataclass(frozen=True, kw_only=True)
class WarpingError(FlowMetric):
    """How badly each frame is explained by the next one, moved back by the flow: mean squared error where both see it.

    After EvalCrafter's warping error (arXiv 2310.11440), and not its numbers: its released file halves the frames,
    gives RAFT pixels of [0, 1] where it reads [0, 255], and lacks an import. Here frames are whole, on RAFT's scale.
    """

    higher_is_better = False
    shown = Shown(None, "·10³", 2, 1e3)

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The mean over the steps of each clip."""
        return samples.features(self.extractor)["error"].double().mean(1)
