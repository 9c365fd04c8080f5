"""Percentile-MSE ranges against numpy and plain loops (specs: PTQ4DiT §1.7, golden tests 13 and 14)."""

import numpy as np
import pytest
import torch

from qdit.errors import UserError
from qdit.quant import ranges
from qdit.quant.affine import affine
from qdit.quant.grid import fake_quantize
from qdit.quant.ranges import PercentileMSE, outer_quantiles, rounding_error
from qdit.quant.spec import QuantSpec

FREE = QuantSpec(bits=8, granularity="row", grid="asymmetric_free", dynamic=False)
RULE = PercentileMSE()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(row, spec, rule=RULE):
    """Candidate by candidate, with numpy's percentiles of one row."""
    candidates = []
    for share in rule.shares:
        ends = [torch.tensor([[np.quantile(row.double().numpy(), p)]]).float() for p in (1 - share, share)]
        rounded = affine(*ends, spec).round(row[None])
        candidates.append(((rounded - row).abs().pow(rule.power).mean().item(), *ends))
    return min(candidates, key=lambda found: found[0])[1:]


@pytest.mark.parametrize("n", [2, 3, 10, 1152, 5001])
@pytest.mark.parametrize("shares", [[0.999, 0.9999, 0.99999], [0.6], [1.0, 0.75]])
def test_golden_13_candidates_are_numpys_percentiles(n, shares):
    x = normal(3, n)
    for share, (lo, hi) in zip(shares, outer_quantiles(x, shares), strict=True):
        expected = np.quantile(x.double().numpy(), [1 - share, share], axis=1, keepdims=True)
        torch.testing.assert_close(torch.stack([lo, hi]), torch.from_numpy(expected).float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("grid", ["asymmetric_free", "asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_best_candidate_of_each_row_is_the_loops(bits, grid):
    x = normal(12, 3000) * normal(12, 1, seed=1).exp()
    x[3:6] = x[3:6] ** 3  # long tails want a narrower range at few bits, and a wider one at many
    spec = QuantSpec(bits=bits, granularity="row", grid=grid, dynamic=False)
    lo, hi = RULE(x, spec)
    for row, a, b in zip(x, lo, hi, strict=True):
        low, high = plain(row, spec)
        torch.testing.assert_close(torch.stack([a, b]), torch.stack([low[0], high[0]]), atol=1e-5, rtol=1e-5)


def test_golden_13_data_of_one_sign_keeps_its_resolution():
    x = 10 + torch.rand(1, 1152, generator=torch.Generator().manual_seed(0))
    grid = affine(*RULE(x, FREE), FREE)
    (lo, hi), (scale,) = RULE(x, FREE), grid.scale
    inside = (x >= lo) & (x <= hi)
    assert grid.zero_point.item() == pytest.approx(-2550, abs=15)
    assert (fake_quantize(x, FREE, grid) - x).abs()[inside].max() <= scale / 2 * 1.01
    assert (fake_quantize(x, FREE, grid) - x).abs().max() <= 1.1 * scale


def test_golden_14_a_row_alters_its_own_range_alone():
    x = normal(8, 500)
    before = RULE(x, FREE)
    x[3] *= 5
    after = RULE(x, FREE)
    for old, new in zip(before, after, strict=True):
        changed = (old != new).flatten()
        assert changed.nonzero().flatten().tolist() == [3]
        assert torch.equal(RULE(x[3:4], FREE)[0], after[0][3:4])


@pytest.mark.parametrize("shape", [(5, 700), (1, 3000), (300, 4)])
def test_errors_do_not_depend_on_the_pieces(shape, monkeypatch):
    x, spec = normal(*shape), QuantSpec(bits=4, granularity="row", grid="asymmetric_free", dynamic=False)
    grid = affine(x.amin(1, keepdim=True), x.amax(1, keepdim=True), spec)
    for power in (1.0, 2.0, 2.4):
        expected = (grid.round(x) - x).abs().double().pow(power).mean(1)
        for pieces in (64, 1000, 2**17):
            monkeypatch.setattr(ranges, "PIECE_VALUES", pieces)
            torch.testing.assert_close(rounding_error(x, grid, power), expected, atol=0, rtol=1e-5)


def test_a_constant_row_is_a_range():
    x = torch.tensor([[0.0] * 8, [3.0] * 8, [-2.0] * 8])
    assert torch.equal(fake_quantize(x, FREE, affine(*RULE(x, FREE), FREE)), x)


@pytest.mark.slow
def test_more_values_than_torchs_quantile_takes():
    x = normal(1, 2**24 + 7)
    lo, hi = RULE(x, FREE)
    low, high = plain(x[0], FREE)
    torch.testing.assert_close(torch.cat([lo, hi]), torch.cat([low, high]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"shares": []}, {"shares": [0.3]}, {"shares": [1.2]}, {"power": 0.0}])
def test_impossible_values_are_refused(wrong):
    with pytest.raises(UserError, match=r"PercentileMSE.(shares|power)=.*; allowed: "):
        PercentileMSE(**wrong)
