"""Video metrics that need no weights. Image models are refused by the modality check before any sampling."""

from typing import TYPE_CHECKING, ClassVar

import torch

from qdit.eval.base import Metric, Result, Samples

if TYPE_CHECKING:
    from qdit.eval.reference import Reference


class TemporalFlickering(Metric):
    """(255 - mean |frame t+1 - frame t|) / 255, a dimension of VBench without weights (arXiv 2311.17982).

    Maximal for frozen video: never read it without a metric of motion or of image quality beside it.
    """

    higher_is_better = True
    modalities: ClassVar[tuple[str, ...]] = ("video",)

    def compute(self, samples: Samples, full_precision: Samples, reference: "Reference | None") -> Result:
        """Mean and standard error over videos; images are chunks of uint8 [b, T, 3, H, W]."""
        each = torch.cat([255 - v.float().diff(dim=1).abs().flatten(1).mean(1) for v in samples.images()])
        return Result.mean_of(each.double() / 255, self.higher_is_better)
