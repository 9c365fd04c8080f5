"""LPIPS to full precision: the paired distance that papers on text-to-image quantization print."""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from qdit.eval.base import Shown
from qdit.eval.extractor import FeatureExtractor, make_extractor
from qdit.eval.extractor.lpips import too_small
from qdit.eval.frames import PairedFrames
from qdit.eval.reference import Reference

PIXELS = 2**22
"""Of pairs that are compared at once: VGG's first layers take half a kilobyte a pixel of each image."""


@cache
def _loaded(name: str, weights: str | None, device: str) -> FeatureExtractor:
    """The network, loaded once a process."""
    return make_extractor(name, weights).loaded(device)


@dataclass(frozen=True, kw_only=True)
class LPIPS(PairedFrames):
    """Distance of each image, or frame, to full precision's, by the layers of a classifier: 0 for equal ones.

    Args:
        net: `lpips_alex` or `lpips_vgg`; its activations are too large to be kept as features, so they are made anew.
        weights: path of torchvision's file; None searches the usual places.
    """

    net: str
    weights: str | None = None
    higher_is_better = False
    shown = Shown(None, "", 4)

    def network(self) -> FeatureExtractor:
        """What makes the distances, not loaded yet."""
        return make_extractor(self.net, self.weights)

    def preflight(
        self, n: int | None = None, reference: Reference | None = None, image_size: int | None = None
    ) -> list[str]:
        """What the network lacks, and images that are too small for it."""
        return [*self.network().preflight(), *too_small(image_size)]

    def score(self, frames: UInt8[Tensor, "b k 3 H W"], *reference: Tensor) -> Float[Tensor, "b k"]:
        """The distance of each frame."""
        pairs = torch.stack([reference[0].flatten(0, 1), frames.flatten(0, 1)], 1)
        network = _loaded(self.net, self.weights, str(frames.device))
        parts = pairs.split(max(1, PIXELS // (pairs.shape[-2] * pairs.shape[-1])))
        return torch.cat([network(part)["distance"] for part in parts]).double().view(frames.shape[:2])
