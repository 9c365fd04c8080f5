"""Stand-ins: samples held in memory, and a small reference of made-up features."""

import pytest
import torch

from qdit.eval.pieces import cut
from qdit.eval.reference import Reference
from qdit.eval.statistics import Moments


class Held:
    """Samples whose features, images and latents were given."""

    def __init__(self, features=None, images=None, latents=None, chunk=8, prompts=(), clusters=None):
        self.prompts, self.clusters = prompts, clusters
        self._features, self._images, self._latents, self._chunk = features, images, latents, chunk
        first = next(x for x in (latents, images, features and features["pooled"]) if x is not None)
        self.n = len(first)

    def latents(self):
        return self._latents

    def images(self):
        yield from self._images.split(self._chunk)

    def pieces(self, extractors=()):
        yield from cut(self.images())

    def missing(self, extractors):
        return []

    def features(self, extractor):
        assert extractor == "lite0"
        return self._features


def make_features(n: int, seed: int, shift: float = 0.0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = {"pooled": 12, "spatial": 6, "logits": 5}
    return {kind: torch.randn(n, size, generator=g) + shift for kind, size in sizes.items()}


def make_reference(features: dict[str, torch.Tensor], images: bool = True) -> Reference:
    whole, spatial = Moments.of(features["pooled"]), Moments.of(features["spatial"])
    return Reference(
        name="toy",
        extractor="lite0",
        mu=whole.mean,
        sigma=whole.covariance(),
        mu_s=spatial.mean,
        sigma_s=spatial.covariance(),
        pooled=features["pooled"] if images else None,
        n=len(features["pooled"]),
    )


@pytest.fixture
def held():
    return Held


@pytest.fixture
def features():
    return make_features


@pytest.fixture
def reference():
    return make_reference
