"""Distances to full precision's own samples."""

import numpy as np
import pytest
import torch

from qdit.errors import UserError
from qdit.eval import to_full
from qdit.eval.statistics import GROUPS, Moments, frechet_distance, groups_of
from qdit.eval.to_full import FIDToFull, KIDToFull, paired_frechet, paired_kernel


def pair(n: int, dim: int, shift: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(n)
    y = torch.randn(n, dim, generator=g, dtype=torch.float64)
    return y + shift * torch.randn(n, dim, generator=g, dtype=torch.float64) + 0.1, y


@pytest.mark.parametrize("n", [45, 90])
def test_leaving_out_is_computing_without(n):
    """With more features than samples, and the other way about."""
    x, y = pair(n, 60)
    groups = groups_of(n)
    frechet, kernel = paired_frechet(x, y, groups), paired_kernel(x, y, groups)

    def distance(keep):
        one, other = Moments.of(x[keep]), Moments.of(y[keep])
        return frechet_distance(one.mean, one.covariance(), other.mean, other.covariance())

    def mmd(keep):
        a, b = x[keep].numpy(), y[keep].numpy()
        k = [(p @ q.T / 60 + 1) ** 3 for p, q in ((a, a), (b, b), (a, b))]
        h = k[0] + k[1] - k[2] - k[2].T
        m = len(a)
        return float((h.sum() - np.trace(h)) / (m * (m - 1)))

    whole = torch.ones(n, dtype=torch.bool)
    assert frechet.full == pytest.approx(distance(whole))
    assert kernel.full == pytest.approx(mmd(whole))
    assert frechet.left_out.tolist() == pytest.approx([distance(groups != g) for g in range(GROUPS)])
    assert kernel.left_out.tolist() == pytest.approx([mmd(groups != g) for g in range(GROUPS)])


def test_equal_samples_are_at_distance_zero(held):
    own = held(features={"pooled": torch.randn(64, 12)})
    for metric in (FIDToFull(extractor="lite0"), KIDToFull(extractor="lite0")):
        result = metric.compute(own, held(features=own.features("lite0")))
        assert (result.value, result.stderr) == (pytest.approx(0, abs=1e-7), pytest.approx(0, abs=1e-7))
        assert result.delta is None


def test_frames_of_clips_count_and_prompts_are_left_out_together(held):
    g = torch.Generator().manual_seed(0)
    y = torch.randn(80, 3, 5, generator=g)
    x = y + 0.2
    prompts = [str(i % 40) for i in range(80)]
    own = held(features={"pooled": x}, clusters=prompts)
    result = FIDToFull(extractor="lite0").compute(own, held(features={"pooled": y}))
    assert result.value == pytest.approx(5 * 0.2**2, rel=1e-5)
    groups = torch.arange(80).remainder(40).remainder(GROUPS).repeat_interleave(3)
    expected = paired_frechet(x.reshape(-1, 5), y.reshape(-1, 5), groups)
    assert result.stderr == pytest.approx(expected.stderr)


@pytest.mark.parametrize("metric", [FIDToFull, KIDToFull])
@pytest.mark.parametrize("count", [2, 4, 13])
def test_few_prompts_are_left_out_one_by_one_or_have_no_error(held, metric, count):
    random = torch.Generator().manual_seed(0)
    y = torch.randn(60, 5, generator=random)
    x = y + torch.randn(count, 5, generator=random)[torch.arange(60) % count]  # the same of all samples of a prompt
    own = held(features={"pooled": x}, clusters=[str(i % count) for i in range(60)])
    full = held(features={"pooled": y})
    result = metric(extractor="lite0").compute(own, full)
    separate = metric(extractor="lite0").compute(held(features={"pooled": x}), full)
    assert result.value == pytest.approx(separate.value)
    assert (result.clusters, separate.clusters) == (count, None)
    if count < 4:
        assert result.stderr is None
    else:
        assert result.stderr > 1.2 * separate.stderr  # as many separate samples seem more certain


def test_sets_must_fit(held):
    with pytest.raises(UserError, match="cannot be paired"):
        FIDToFull(extractor="lite0").compute(
            held(features={"pooled": torch.zeros(50, 4)}), held(features={"pooled": torch.zeros(49, 4)})
        )
    assert FIDToFull(extractor="lite0").preflight(39)[0].startswith("39 samples are too few, 40 are the least")


def test_tiles_change_nothing(monkeypatch):
    x, y = pair(45, 60)
    whole = paired_kernel(x, y, groups_of(45))
    monkeypatch.setattr(to_full, "TILE", 7)
    tiled = paired_kernel(x, y, groups_of(45))
    assert tiled.full == pytest.approx(whole.full)
    assert tiled.left_out.tolist() == pytest.approx(whole.left_out.tolist())
