"""The column loop against a naive one, and its golden tests (q-dit.md §6 nos. 8 to 12)."""

import itertools

import pytest
import torch

from qdit.errors import UserError
from qdit.quant.grid import Rounded, shared
from qdit.quant.levels import Levels
from qdit.quant.named import owned
from qdit.quant.ranges import MSE, MinMax, Percentile
from qdit.quant.spec import as_rows
from qdit.rounding.gptq_columns import InputHessian, curvature, lazy_blocks, round_columns
from qdit.weight import WeightGrid

GRIDS = ("asymmetric", "asymmetric_free", "asymmetric_clamped", "symmetric", "symmetric_full")
CHANNELS = 96


def grid(granularity="row", group_size=None, kind="asymmetric", rule=None) -> WeightGrid:
    return WeightGrid(granularity=granularity, group_size=group_size, grid=kind, range=rule or MinMax())


def problem(seed=0, out=24, channels=CHANNELS, rows=400, dtype=torch.float64):
    """A weight and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator) / channels**0.5 + 0.5 * torch.eye(channels)
    x = torch.randn(rows, channels, generator=generator) @ mix
    weight = torch.randn(out, channels, generator=generator) / channels**0.5
    hessian = InputHessian()
    hessian.add(x)
    return weight.to(dtype), hessian.value().to(dtype)


def nearest(weight, spec, part):
    rows = as_rows(weight, spec)
    return part.fit(weight, spec).round(rows).view_as(weight)


def gptq(weight, hessian, part, bits=4, damping=0.01, act_order=False, block_size=128):
    curve = curvature(hessian, damping, act_order, "site")
    return values(round_columns(weight, curve, part.spec(bits), part.fit, block_size)).to(weight.dtype)


def values(rounded):
    """A rounded weight in double precision."""
    rows = as_rows(rounded.codes, rounded.spec)
    return rounded.grid.decode(rows.double()).view(rounded.codes.shape)


def loss(weight, rounded, hessian):
    delta = (weight - rounded).double()
    return float(torch.einsum("oi,ij,oj->", delta, hessian.double(), delta))


def naive(weight, hessian, part, bits=4, damping=0.01, grids_every=1):
    """GPTQ as its equations read: one column at a time, the inverse of what is left formed anew.

    Group grids come from the weights as they were at the last multiple of `grids_every` columns.
    """
    weight, spec = weight.clone(), part.spec(bits)
    channels = weight.shape[1]
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(channels, dtype=hessian.dtype)
    size = spec.group_size or channels
    fixed = part.fit(weight, spec) if spec.group_size is None else None
    for i in range(channels):
        if i % grids_every == 0:
            seen = weight.clone()
        if fixed is None and i % size == 0:
            current = part.fit(seen[:, i : i + size].contiguous(), spec)
        chosen = fixed if fixed is not None else current
        rounded = chosen.round(weight[:, i : i + 1])
        inverse = torch.linalg.inv(damped[i:, i:])
        error = (weight[:, i : i + 1] - rounded) / inverse[0, 0]
        weight[:, i:] -= error * inverse[0]
        weight[:, i : i + 1] = rounded
    return weight


@pytest.mark.parametrize(
    "part", [grid(), grid("tensor"), grid("group", 32), grid("group", 48, "symmetric_full")], ids=str
)
def test_equals_the_equations(part):
    weight, hessian = problem()
    assert torch.allclose(gptq(weight, hessian, part), naive(weight, hessian, part), atol=1e-9)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize(("granularity", "size"), [("row", None), ("tensor", None), ("group", 16), ("group", 32)])
def test_no_8_uncorrelated_inputs_of_one_size_round_to_nearest(granularity, size, kind):
    part = grid(granularity, size, kind)
    weight, _ = problem(dtype=torch.float32)
    for act_order in (False, True):
        rounded = gptq(weight, 3.7 * torch.eye(CHANNELS), part, act_order=act_order)
        assert torch.equal(rounded, nearest(weight, part.spec(4), part))


@pytest.mark.parametrize("rule", [MinMax(), MSE(candidates=20), Percentile(p=0.99)], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("kind", ["asymmetric", "symmetric", "symmetric_full"])
@pytest.mark.parametrize(("granularity", "size"), [("row", None), ("tensor", None), ("group", 32)])
@pytest.mark.parametrize("act_order", [False, True])
def test_no_9_loses_less_than_nearest(granularity, size, kind, rule, act_order):
    part = grid(granularity, size, kind, rule)
    weight, hessian = problem(dtype=torch.float32)
    rounded = gptq(weight, hessian, part, act_order=act_order)
    assert loss(weight, rounded, hessian) < 0.9 * loss(weight, nearest(weight, part.spec(4), part), hessian)


@pytest.mark.parametrize("size", [16, 32, 48, 96, None])
@pytest.mark.parametrize("act_order", [False, True])
def test_no_10_lazy_blocks_do_not_change_the_result(size, act_order):
    part = grid("group" if size else "row", size)
    weight, hessian = problem()
    whole = gptq(weight, hessian, part, act_order=act_order, block_size=CHANNELS)
    for block_size in (1, 20, 32, 80, 128):
        other = gptq(weight, hessian, part, act_order=act_order, block_size=block_size)
        assert torch.allclose(other, whole, atol=1e-9), block_size


def test_no_10_in_single_precision_at_q_dits_width():
    weight, hessian = problem(out=16, channels=288, rows=2000, dtype=torch.float32)
    part = grid("group", 32)
    whole = gptq(weight, hessian, part, block_size=288)
    for block_size in (32, 128):
        # A value that lies on the border of two codes may fall on either side when a sum's order changes.
        other = gptq(weight, hessian, part, block_size=block_size)
        assert (other - whole).abs().gt(1e-5).float().mean() < 0.01


def test_addendum_grids_from_stale_weights_lose_more():
    """The released lazy blocks hold back their own updates from the grids: most values change and the loss rises."""
    part, losses = grid("group", 32), torch.zeros(2)
    for seed in range(4):
        weight, hessian = problem(seed, out=64, channels=128, rows=2000)
        fresh, stale = gptq(weight, hessian, part), naive(weight, hessian, part, grids_every=128)
        assert (fresh - stale).abs().gt(1e-6).double().mean() > 0.5
        losses += torch.tensor([loss(weight, fresh, hessian), loss(weight, stale, hessian)])
    assert losses[1] > 1.02 * losses[0]


def test_no_11_dead_channels_round_to_zero():
    weight, hessian = problem(dtype=torch.float32)
    dead = [0, 17, 95]
    hessian[dead, :] = 0
    hessian[:, dead] = 0
    for part, act_order in itertools.product((grid(), grid("group", 32), grid("tensor")), (False, True)):
        rounded = gptq(weight, hessian, part, act_order=act_order)
        assert rounded[:, dead].eq(0).all()
        alive = [c for c in range(CHANNELS) if c not in dead]
        assert torch.isfinite(rounded).all()
        assert rounded[:, alive].ne(0).any(0).all()


def test_no_11_an_input_that_is_always_zero():
    weight, _ = problem(dtype=torch.float32)
    assert gptq(weight, torch.zeros(CHANNELS, CHANNELS), grid()).eq(0).all()


def test_no_11_fewer_tokens_than_channels_need_damping(caplog):
    weight, hessian = problem(rows=20, dtype=torch.float32)
    assert torch.isfinite(gptq(weight, hessian, grid(), damping=0.01)).all()
    assert not caplog.records
    assert torch.isfinite(gptq(weight, hessian, grid(), damping=0.0)).all()
    assert "site needed damping" in caplog.text


def test_damping_does_not_depend_on_the_inputs_scale_or_dead_channels():
    weight, hessian = problem()
    hessian[0, :] = hessian[:, 0] = 0
    assert torch.allclose(gptq(weight, hessian, grid()), gptq(weight, 1e-6 * hessian, grid()))


def test_a_hessian_that_cannot_be_factored_is_refused_by_name():
    with pytest.raises(UserError, match="site.*cannot be factored"):
        curvature(-torch.ones(4, 4) + 2 * torch.eye(4), 1e-6, False, "site")
    with pytest.raises(UserError, match="site are not finite"):
        curvature(torch.full((4, 4), float("nan")), 0.01, False, "site")


def test_factor_is_that_of_the_inverse():
    _, hessian = problem()
    curve = curvature(hessian, 0.0, False, "site")
    assert torch.equal(curve.factor, curve.factor.triu())
    assert torch.allclose(curve.factor.T @ curve.factor @ hessian, torch.eye(CHANNELS, dtype=torch.float64), atol=1e-8)


def test_two_columns_by_brute_force():
    """The second code is the best of all, given the first; and the pair is often the best of all pairs."""
    part = grid("tensor")
    spec = part.spec(3)
    hessian = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    weight = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounded = gptq(weight, hessian, part, bits=3, damping=0.0)
    plain = nearest(weight, spec, part)
    chosen = part.fit(weight, spec)
    values = ((torch.arange(8) - chosen.zero_point) * chosen.scale).flatten().double()
    pairs = torch.cartesian_prod(values, values)
    optimal = [0, 0]
    for row in range(len(weight)):
        delta = weight[row] - pairs
        losses = torch.einsum("pi,ij,pj->p", delta, hessian, delta)
        given_first = losses.masked_fill((pairs[:, 0] - rounded[row, 0]).abs() > 1e-6, float("inf"))
        assert rounded[row, 0] == plain[row, 0]
        assert torch.allclose(pairs[given_first.argmin()], rounded[row], atol=1e-6)
        for n, candidate in enumerate((rounded[row], plain[row])):
            optimal[n] += int(torch.allclose(pairs[losses.argmin()], candidate, atol=1e-6))
    assert optimal[0] > optimal[1] + 20


def test_hessian_is_the_same_whatever_the_batches():
    x = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))
    whole, parts = InputHessian(), InputHessian()
    whole.add(x)
    for part in x.split(2):
        parts.add(part)
    expected = 2 / 30 * torch.einsum("btc,btd->cd", x, x)
    assert torch.allclose(whole.value(), expected, atol=1e-5)
    assert torch.allclose(parts.value(), expected, atol=1e-5)


def test_lazy_blocks_cover_all_columns_and_hold_a_groups_start():
    for size, block_size in itertools.product((None, 8, 32, 48, 96), (1, 7, 32, 50, 200)):
        ranges = list(lazy_blocks(CHANNELS, size, block_size))
        assert [c for start, end in ranges for c in range(start, end)] == list(range(CHANNELS))
        for first in range(0, CHANNELS, size or CHANNELS):
            start, end = next(r for r in ranges if r[0] <= first < r[1])
            assert first == start or first + size <= end


def test_groups_are_searched_on_the_scales_that_are_deployed_and_nothing_else_is():
    """A range rule is called once a group, and knows the common part of the whole weight's scales."""
    weight, hessian = problem(dtype=torch.float32)
    part = WeightGrid(**owned({"granularity": "row", "grid": "asymmetric"}, "nvfp4"), range=MSE(candidates=10))
    spec = part.spec(4)
    calls = []

    def fit(weight, *about):
        calls.append(len(weight))
        return part.fit(weight, *about)

    made = round_columns(weight, curvature(hessian, 0.01, False, "site"), spec, fit, 128)
    assert len(calls) == CHANNELS // 16
    assert torch.equal(made.grid.whole, shared(as_rows(weight, spec), spec))
    # A part of a weight, with the common part of all, has the very ranges that it has in the whole.
    whole = part.fit(weight, spec)
    some = part.fit(weight[1:2], spec, whole.whole)
    assert torch.equal(some.stored, whole.stored[CHANNELS // 16 : 2 * CHANNELS // 16])


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", ["nvfp4", "nvfp4_46", "mxfp4", "fp4", "lloyd4"])
def test_columns_are_rounded_on_the_grid_that_is_deployed(name, act_order):
    """What is kept gives the very weight, on scales that are kept as the format keeps them, and better outputs."""
    weight, hessian = problem(dtype=torch.float32)
    part = WeightGrid(**owned({"granularity": "row", "grid": "asymmetric"}, name), range=MinMax())
    spec = part.spec(4)
    start = part.fit(weight, spec)
    made = round_columns(weight, curvature(hessian, 0.01, act_order, "site"), spec, part.fit, 128)
    assert isinstance(made.grid, Levels)
    assert isinstance(start, Levels)
    assert torch.equal(Rounded.of(made.weight, made.grid, spec).codes, made.codes)
    assert torch.equal(made.grid.scales.kept(made.grid.stored), made.grid.stored)
    if start.whole is not None:
        assert torch.equal(made.grid.whole, start.whole)
    assert loss(weight, made.weight, hessian) < 0.9 * loss(weight, Rounded.of(weight, start, spec).weight, hessian)
