"""Agreement of samples with their prompts, and of frames with each other, by CLIP.

`clip_score_*` is the mean cosine of image and prompt times 100, below 0 counted as 0 (torchmetrics' scale; Hessel et
al., arXiv 2104.08718, multiply by 2.5 and put "A photo depicts" before the prompt). `clipsim_evalcrafter` and
`clip_temp_evalcrafter` are the columns of video papers, in which frames enter the network wrongly (EvalCrafter,
arXiv 2310.11440): right for comparison with those papers, and for nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import OfFeatures, Samples, Shown, no_prompts
from qdit.eval.per_sample import PerSample


def _units(samples: Samples, extractor: str) -> Float[Tensor, "n T D"]:
    """Normalised features of each frame; an image is one."""
    pooled = F.normalize(samples.features(extractor)["pooled"].double(), dim=-1)
    return pooled[:, None] if pooled.ndim == 2 else pooled


@dataclass(frozen=True, kw_only=True)
class TextAlignment(OfFeatures, PerSample):
    """`scale` times the mean over frames of the cosine of image and prompt; `floor` counts what is below 0 as 0."""

    modalities = ("image", "video")
    higher_is_better = True
    shown = Shown(digits=3)
    scale: float = 1.0
    floor: bool = False

    def unreadable(self, prompts: Sequence[str]) -> list[str]:
        """A sentence if there are none."""
        if not prompts:
            return [no_prompts(f"{self.extractor} compares samples with prompts, and no prompts are known")]
        return super().unreadable(prompts)

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The score of each sample.

        Raises:
            UserError: no prompts are known.
        """
        if not samples.prompts:
            raise UserError(*self.unreadable(()))
        texts = F.normalize(samples.texts(self.extractor).double(), dim=1)
        cosines = (_units(samples, self.extractor) * texts[:, None]).sum(2)
        return self.scale * (cosines.clamp(min=0) if self.floor else cosines).mean(1)


@dataclass(frozen=True, kw_only=True)
class LearnedAlignment(TextAlignment):
    """The mean over frames of the cosine times the factor that the network learned: PickScore (arXiv 2305.01569)."""

    shown = Shown(digits=2)

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The score of each sample."""
        factor = samples.features(self.extractor)["factor"].double().flatten(1).mean(1)
        return factor * super().each(samples, full_precision)


@dataclass(frozen=True, kw_only=True)
class FrameSimilarity(OfFeatures, PerSample):
    """CLIP-Temp: the mean cosine of successive frames."""

    modalities = ("video",)
    higher_is_better = True
    shown = Shown(digits=4)

    @property
    def fewest_frames(self) -> int:
        """A pair."""
        return 2

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The score of each clip.

        Raises:
            UserError: the clips have one frame.
        """
        z = _units(samples, self.extractor)
        if short := self.short(z.shape[1]):
            raise UserError(f"{type(self).__name__}: {short[0]}")
        return (z[:, 1:] * z[:, :-1]).sum(2).mean(1)


@dataclass(frozen=True, kw_only=True)
class Aesthetic(OfFeatures, PerSample):
    """VBench's aesthetic quality: LAION's linear head on CLIP ViT-L/14, over ten; the mean over frames.

    Args:
        head: the file of the head; None searches the usual places (`qdit.storage.weights`).
    """

    modalities = ("image", "video")
    higher_is_better = True
    shown = Shown(digits=4)
    head: str | None = None

    def judges(self) -> str:
        """VBench's dimension."""
        return "aesthetic_quality"

    def preflight(self, n: int | None = None, reference: object = None, image_size: int | None = None) -> list[str]:
        """What CLIP lacks, and the head."""
        from qdit.storage.weights import WEIGHTS

        return [*super().preflight(n, None, image_size), *WEIGHTS["laion_head"].missing(self.head)]

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The score of each sample.

        Raises:
            UserError: the head is missing, or no linear map of these features.
        """
        from qdit.eval.extractor.user_files import load_strictly, read_state
        from qdit.storage.weights import WEIGHTS

        if (path := WEIGHTS["laion_head"].find(self.head)) is None:
            raise UserError(*WEIGHTS["laion_head"].missing(self.head))
        units = _units(samples, self.extractor)
        head = load_strictly(torch.nn.Linear(units.shape[-1], 1), read_state(path), path).double()
        with torch.no_grad():
            return head(units)[..., 0].mean(1) / 10


@dataclass(frozen=True, kw_only=True)
class ImagingQuality(OfFeatures, PerSample):
    """VBench's imaging quality: MUSIQ's score of each frame, over a hundred; the mean over frames."""

    modalities = ("image", "video")
    higher_is_better = True
    shown = Shown(digits=4)

    def judges(self) -> str:
        """VBench's dimension."""
        return "imaging_quality"

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The score of each sample."""
        return samples.features(self.extractor)["score"].double().flatten(1).mean(1) / 100
