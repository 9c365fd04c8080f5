"""KID against naive forms and torch-fidelity (evaluation dossier T20)."""

import pytest
import torch
from torch_fidelity.metric_kid import kernel_poly, mmd2

from qdit.errors import UserError
from qdit.eval import kid as kernel
from qdit.eval.kid import kernel_distance, mean_within


def draw(n: int, dim: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[7, 4096])
def tile(request, monkeypatch):
    monkeypatch.setattr(kernel, "TILE", request.param)


def test_kernel_distance_equals_torch_fidelity(tile):
    x, y = draw(60, 8, 0), draw(60, 8, 1) + 0.5
    a, b = x.double().numpy(), y.double().numpy()
    expected = mmd2(kernel_poly(a, a), kernel_poly(a, b), kernel_poly(b, b))
    assert kernel_distance(x, y, mean_within(y)).full == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_with_a_group_left_out(tile):
    x, y = draw(70, 8, 0), draw(50, 8, 1)
    found = kernel_distance(x, y, mean_within(y))
    for g in (0, 10, 19):
        rest = x[torch.arange(70) % 20 != g]
        within, across = kernel.kernel(rest, rest), kernel.kernel(rest, y).mean()
        direct = (within.sum() - within.trace()) / (len(rest) * (len(rest) - 1)) + mean_within(y) - 2 * across
        assert float(found.left_out[g]) == pytest.approx(float(direct), rel=1e-8)


def test_kernel_distance_is_unbiased_and_not_clipped():
    values = []
    for seed in range(60):
        x, y = draw(60, 8, 2 * seed), draw(60, 8, 2 * seed + 1)
        values.append(kernel_distance(x, y, mean_within(y)).full)
    values = torch.tensor(values)
    assert abs(float(values.mean())) < 4 * float(values.std()) / 60**0.5
    assert float(values.min()) < 0
    assert kernel_distance(x, x, mean_within(x)).full < 0


def test_one_image_has_no_pairs():
    with pytest.raises(UserError, match="not defined for 1 reference image"):
        mean_within(torch.ones(1, 3))
