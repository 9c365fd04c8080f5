"""Extractors that need no weights, under the name of `lite0`: fast, and easy to check."""

from collections.abc import Callable

import torch
from torch import Tensor

from qdit.eval.extractor.common import FeatureExtractor


class Of(torch.nn.Module):
    """A network that is a function of images [b, 3, H, W] in [0, 1]."""

    def __init__(self, features: Callable[[Tensor], dict[str, Tensor]]) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.features(images.float() / 255)


class Tiny(FeatureExtractor):
    """What the two have in common."""

    name = "lite0"
    weights_sha256 = "0" * 64

    def preflight(self) -> list[str]:
        return []


class Pixels(Tiny):
    """The first values as features."""

    sizes = {"pooled": 12, "spatial": 6, "logits": 5}  # noqa: RUF012

    def build(self) -> Of:
        def features(images: Tensor) -> dict[str, Tensor]:
            flat = images.flatten(1)
            return {"pooled": flat[:, :12], "spatial": flat[:, 12:18], "logits": flat[:, 18:23]}

        return Of(features)


class Colours(Tiny):
    """Mean colours as features."""

    sizes = {"pooled": 3, "spatial": 3, "logits": 3}  # noqa: RUF012

    def build(self) -> Of:
        return Of(lambda images: dict.fromkeys(self.sizes, images.mean((2, 3))))
