"""AdaRound's arithmetic against its numbers, autograd and nearest rounding."""

import pytest
import torch

from qdit.errors import UserError
from qdit.quant.affine import Affine, affine
from qdit.quant.grid import Rounded, covering, extent
from qdit.quant.spec import QuantSpec, as_rows
from qdit.rounding.reconstruction.loop import Learning, shuffled
from qdit.rounding.reconstruction.soft import SoftWeight, beta_at, initial_alpha, rectified

SPECS = [
    QuantSpec(bits=4, dynamic=False),
    QuantSpec(bits=3, granularity="group", group_size=8, dynamic=False),
    QuantSpec(bits=4, granularity="tensor", grid="symmetric", dynamic=False),
    QuantSpec(bits=2, grid="asymmetric_free", dynamic=False),
]


def soft_weight(spec, clip=1.0, shape=(6, 16)):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = as_rows(weight, spec)
    return weight, SoftWeight(weight, affine(clip * rows.amin(1, True), clip * rows.amax(1, True), spec), spec)


def test_no_8_initial_values():
    fraction = torch.tensor([0.0, 0.25, 0.5, 0.9])
    alpha = initial_alpha(fraction)
    torch.testing.assert_close(alpha, torch.tensor([-2.397895, -0.887303, 0.0, 1.609438]))
    torch.testing.assert_close(rectified(alpha.sigmoid()), fraction)


@pytest.mark.parametrize("clip", [1.0, 0.6])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_no_8_soft_is_the_clipped_weight_and_hard_the_nearest_at_first(spec, clip):
    weight, soft = soft_weight(spec, clip)
    grid = soft.grid
    low, high = ((bound - grid.zero_point) * grid.scale for bound in (grid.low, grid.high))
    clipped = as_rows(weight, spec).clamp(low, high).view(weight.shape)
    torch.testing.assert_close(soft.soft(), clipped, atol=1e-6, rtol=1e-6)
    assert torch.equal(soft.hard().codes, Rounded.of(weight, grid, spec).codes)


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(bits=4, grid="e2m1", dynamic=False),
        QuantSpec(bits=4, grid="e3m0", granularity="group", group_size=8, dynamic=False),
        QuantSpec(bits=4, grid="e2m1", granularity="group", group_size=16, scale="e4m3", dynamic=False),
        QuantSpec(bits=3, grid="lloyd_max", dynamic=False),
    ],
    ids=lambda spec: f"{spec.grid}-{spec.scale}",
)
def test_with_levels_it_is_the_clipped_weight_and_the_nearest_at_first_and_goes_up_or_down(spec):
    weight = torch.randn((6, 16), generator=torch.Generator().manual_seed(0))
    rows = as_rows(weight, spec)
    grid = covering(rows, *(0.8 * end for end in extent(rows, spec)), spec)
    soft = SoftWeight(weight, grid, spec)
    least, most = (grid.format.levels(weight.device)[end] * grid.scale for end in (0, -1))
    torch.testing.assert_close(soft.soft().detach(), rows.clamp(least, most).view(6, 16), atol=1e-6, rtol=1e-5)
    nearest = Rounded.of(weight, grid, spec)
    assert torch.equal(soft.hard().weight, nearest.weight)
    soft.alpha.fill_(1.0)
    up = soft.hard().weight
    soft.alpha.fill_(-1.0)
    down = soft.hard().weight
    assert ((up >= weight - 1e-6) | (as_rows(up, spec) >= most - 1e-6).view(6, 16)).all()
    assert (down <= up).all()
    assert ((nearest.weight == up) | (nearest.weight == down)).all()


def scale_aware(spec=None):
    """A weight that learns in its own units, what learns, and a gradient."""
    spec = spec or QuantSpec(bits=4, grid="e2m1", granularity="group", group_size=8, dynamic=False)
    random = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn((6, 16), generator=random) for _ in range(2))
    rows = as_rows(weight, spec)
    grid = covering(rows, *(0.8 * end for end in extent(rows, spec)), spec)
    return weight, gradient, grid, spec


def test_scale_aware_rounding_starts_as_the_other_and_its_gradient_is_autograds():
    weight, gradient, grid, spec = scale_aware()
    own, plain = SoftWeight(weight, grid, spec, scale_aware=True), SoftWeight(weight, grid, spec)
    torch.testing.assert_close(own.soft().detach(), plain.soft().detach(), atol=1e-6, rtol=1e-6)
    assert torch.equal(own.hard().codes, plain.hard().codes)
    own.learn(gradient, 0.01, 3.0)
    found = grid.bracket(as_rows(weight, spec))
    inside = found.reach > 0
    v = own.alpha.detach().clone().requires_grad_()
    h = (torch.sigmoid(v / torch.where(inside, found.reach, 1.0)) * 1.2 - 0.1).clamp(0, 1)
    loss = ((found.origin + h * found.reach) * as_rows(gradient, spec)).sum() + 0.01 * (
        1 - (2 * h - 1).abs() ** 3.0
    ).sum()
    loss.backward()
    assert v.grad is not None
    between = inside & (h > 1e-3) & (h < 1 - 1e-3)  # at its ends the clamp has two slopes
    assert between.sum() > 48
    torch.testing.assert_close(own.alpha.grad[between], v.grad[between], atol=1e-5, rtol=1e-4)


def test_a_scale_aware_step_goes_further_where_values_lie_close_together():
    weight, _, grid, spec = scale_aware()
    own = SoftWeight(weight, grid, spec, scale_aware=True)
    reach = grid.bracket(as_rows(weight, spec)).reach
    unit = torch.where(reach > 0, reach, 1.0)
    before = rectified((own.alpha / unit).sigmoid())
    own.alpha.add_(1e-3)
    moved, middle = rectified((own.alpha / unit).sigmoid()) - before, (before - 0.5).abs() < 0.2
    near, far = (moved[(reach > 0) & middle & part] for part in (reach < 0.3, reach > 0.5))
    assert len(near) > 0
    assert len(far) > 0
    assert near.min() > far.max()


def test_no_8_ties_go_where_nearest_rounding_sends_them():
    grid = Affine(torch.ones(1, 1), torch.full((1, 1), 8.0), 0, 15)
    weight = torch.tensor([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.4999999, 0.5000001]])
    soft, spec = SoftWeight(weight, grid, QuantSpec(bits=4)), QuantSpec(bits=4)
    assert torch.equal(soft.hard().codes, Rounded.of(weight, grid, spec).codes)


def test_no_9_schedule():
    assert [beta_at(n, 20_000, 0.2, 20, 2) for n in (1, 4_000, 8_000, 12_000, 16_000, 20_000)] == [
        20, 20, 15.5, 11, 6.5, 2,
    ]  # fmt: skip
    assert beta_at(1, 1, 0.0, 20, 2) == 2


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_written_gradient_is_autograds(spec, weight):
    original, soft = soft_weight(spec, clip=0.6)
    soft.alpha += 0.3 * torch.randn(soft.alpha.shape, generator=torch.Generator().manual_seed(1))
    target = torch.randn(original.shape, generator=torch.Generator().manual_seed(2))
    leaf = soft.soft()
    (gradient,) = torch.autograd.grad((leaf * target).sum(), leaf)
    soft.learn(gradient, weight, 5.0)
    alpha = soft.alpha.clone().requires_grad_()
    h = (1.2 * alpha.sigmoid() - 0.1).clamp(0, 1)
    low, high = soft.grid.low - soft.grid.zero_point, soft.grid.high - soft.grid.zero_point
    floor = (as_rows(original, spec) / soft.grid.scale).floor()
    plain = ((floor + h).clamp(low, high) * soft.grid.scale).view(original.shape)
    torch.testing.assert_close(plain.detach(), leaf.detach())
    ((plain * target).sum() + weight * (1 - (2 * h - 1).abs() ** 5.0).sum()).backward()
    # At the very bounds clamp has no derivative; autograd passes there, and no code depends on it.
    apart = (floor + h != low) & (floor + h != high)
    torch.testing.assert_close(soft.alpha.grad[apart], alpha.grad[apart])


def test_no_10_a_heavy_penalty_makes_binary_choices():
    _, soft = soft_weight(SPECS[0])
    optimizer = torch.optim.Adam([soft.alpha], lr=0.1)
    for n in range(1, 201):
        soft.learn(torch.zeros_like(soft.soft()), 1e3, beta_at(n, 200, 0.0, 20, 2))
        optimizer.step()
    h = rectified(soft.alpha.sigmoid())
    assert ((h == 0) | (h == 1)).all()


def test_data_is_shuffled_as_a_whole():
    batches = shuffled(10, 4, torch.Generator().manual_seed(0))
    seen = torch.cat([next(batches) for _ in range(5)])
    assert all(sorted(seen[n : n + 10].tolist()) == list(range(10)) for n in (0, 10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(seen[:4], next(shuffled(10, 4, torch.Generator().manual_seed(0))))


@pytest.mark.parametrize(
    "wrong", [{"iterations": -1}, {"batch_size": 0}, {"warmup": 1.0}, {"beta_end": 0.5}, {"rate": -1.0}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Learning(**wrong)
