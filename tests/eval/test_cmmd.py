"""CMMD against a naive form of its released formula."""

import pytest
import torch

from qdit.eval import cmmd as module
from qdit.eval.cmmd import CMMD, cmmd
from qdit.eval.extractor import EXTRACTORS


def draw(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)) + shift


def naive(x: torch.Tensor, y: torch.Tensor) -> float:
    """Means of the kernel over all pairs, of features of length one."""
    x, y = (each.double() / each.double().norm(dim=1, keepdim=True) for each in (x, y))

    def mean(a, b):
        return (-(torch.cdist(a, b) ** 2) / 200).exp().mean()

    return float(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)))


@pytest.mark.parametrize("tile", [7, 4096])
def test_equals_the_naive_form_with_each_group_left_out(tile, monkeypatch):
    monkeypatch.setattr(module, "TILE", tile)
    x, y = draw(70, 0), draw(50, 1, 0.5)
    found = cmmd(x, y)
    assert found.full == pytest.approx(naive(x, y), rel=1e-8)
    for g in (0, 10, 19):
        assert float(found.left_out[g]) == pytest.approx(naive(x[torch.arange(70) % 20 != g], y), rel=1e-7)


def test_is_zero_for_the_same_images_and_grows_with_the_distance():
    x = draw(60, 0)
    assert cmmd(x, 3 * x).full == pytest.approx(0, abs=1e-9)  # lengths do not matter
    values = [cmmd(x, draw(60, 1, shift)).full for shift in (0.0, 0.5, 2.0)]
    assert 0 < values[0] < values[1] < values[2]


def test_a_metric_beside_its_reference(held, features, reference, monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "clip_l14_336", EXTRACTORS["lite0"])
    own, full = features(60, 0, 0.3), features(60, 1)
    to, metric = reference(features(80, 2)), CMMD(extractor="lite0")
    result = metric.compute(held(own), held(full), to)
    assert result.value == pytest.approx(naive(own["pooled"], to.features()), rel=1e-6)
    assert result.delta == pytest.approx(result.value - naive(full["pooled"], to.features()), rel=1e-6)
    assert result.stderr > 0
    assert any(
        "no features of single images" in said for said in metric.preflight(60, reference(features(80, 2), False))
    )
