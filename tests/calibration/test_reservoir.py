"""Samples of values: fair in every axis, the same whatever the batches, with exact extremes."""

import numpy as np
import pytest
import torch

from qdit.calibration.reservoir import GroupedReservoirs, ValueReservoir, chosen
from qdit.quant.ranges import outer_quantiles
from qdit.quant.time_groups import Groups


def filled(parts, **how) -> ValueReservoir:
    reservoir = ValueReservoir(**how)
    for part in parts:
        reservoir.add(part)
    return reservoir


def test_every_channel_is_seen():
    reservoir = filled([torch.arange(256.0).expand(32, 64, 256)] * 8)
    counts = np.bincount(reservoir.values().int().numpy(), minlength=256)
    assert (counts > 0).all()  # 17 of them before
    expected = counts.mean()
    assert 0.7 * expected < counts.min() <= counts.max() < 1.3 * expected


@pytest.mark.parametrize("shape", [(32, 64, 1152), (8, 4, 64, 64), (16, 4608), (50, 77)], ids=str)
def test_the_sample_is_fair_along_every_axis(shape):
    """Along an axis each place has its share: chi-square, of its degrees of freedom, five deviations wide."""
    numbers = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    reservoir = ValueReservoir(size=2**12)
    for part in numbers.view(shape).split(4):
        reservoir.add(part)
    places = np.unravel_index(torch.cat(reservoir.places).numpy(), shape)
    for axis, length in zip(places, shape, strict=True):
        counts = np.bincount(axis, minlength=length)
        free = length - 1
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < free + 5 * (2 * free) ** 0.5


@pytest.mark.parametrize("rows", [1, 3])
def test_the_sample_does_not_depend_on_the_batches(rows):
    x = torch.randn(rows, 5000)
    wholes = filled([x], size=300, rows=rows).values()
    parts = filled(x.split([1, 7, 0, 1992, 3000], 1), size=300, rows=rows).values()
    assert torch.equal(wholes, parts)
    assert not torch.equal(wholes, filled([x], size=300, rows=rows, seed=1).values())


def test_extremes_are_exact_and_nothing_is_counted_twice():
    x = torch.randn(4, 5000)
    kept = filled([x], size=600, rows=4).values()
    assert kept.shape[0] == 4
    assert 300 < kept.numel() <= 600
    torch.testing.assert_close(kept.aminmax(dim=1), x.aminmax(dim=1))
    few = torch.randn(262144)
    whole = filled([few]).values()
    assert torch.equal(whole, few)
    ((low, high),) = outer_quantiles(whole.view(1, -1), [0.99999])
    assert high.item() == pytest.approx(np.quantile(few.numpy(), 0.99999), rel=1e-6)
    assert low.item() == pytest.approx(np.quantile(few.numpy(), 1 - 0.99999), rel=1e-6)


def test_the_sample_estimates_tails():
    """The quantile of a few wide channels among many, as inputs of transformers have them."""
    scale = torch.ones(1152)
    scale[::97] = 8
    x = torch.randn(8, 256, 1152, generator=torch.Generator().manual_seed(0)) * scale
    kept = filled(x.split(2)).values()
    for share in (0.99, 0.999):
        assert np.quantile(kept.numpy(), share) == pytest.approx(np.quantile(x.numpy(), share), rel=0.05)


def test_a_constant_stream_and_few_values():
    assert filled([torch.full((1000,), 3.0)], size=10).values().unique().tolist() == [3.0]
    assert filled([torch.tensor([1.0])]).values().tolist() == [1.0]
    spike = torch.zeros(10_000)
    spike[1234], spike[77] = 5.0, -2.0
    values = filled([spike], size=10).values()
    assert (values.min(), values.max()) == (-2.0, 5.0)


@pytest.mark.parametrize("size", [1, 4, 8])
def test_many_rows_keep_their_extremes(size):
    for seed in range(20):
        x = torch.randn(4, 103)
        kept = filled(x.split(2, 1), size=size, rows=4, seed=seed).values()
        torch.testing.assert_close(kept.aminmax(dim=1), x.aminmax(dim=1), rtol=0, atol=0)


def test_choices_of_a_level_are_choices_of_the_level_below():
    for level in range(1, 12):
        upper = chosen(torch.arange(100), level, 7)
        assert torch.equal(upper >> level, torch.arange(100))
        assert torch.isin(upper, chosen(torch.arange(200), level - 1, 7)).all()
    halves = chosen(torch.arange(4096), 1, 0) & 1
    assert abs(halves.double().mean().item() - 0.5) < 0.03


def test_groups_of_timesteps_have_samples_of_their_own():
    groups = Groups((500,))
    reservoirs = GroupedReservoirs(groups)
    x, t = torch.cat([torch.zeros(3, 100), torch.ones(2, 100)]), torch.tensor([100, 200, 300, 700, 800])
    reservoirs.add(x, t)
    found = sorted(part.unique().tolist() for part in reservoirs.values())
    assert found == [[0.0], [1.0]]


def test_rows_of_a_reservoir_are_told_apart():
    reservoir, parts = ValueReservoir(size=100, rows=4), [torch.randn(4, 37) for _ in range(9)]
    for part in parts:
        reservoir.add(part)
    everything, kept = torch.cat(parts, 1), reservoir.values()
    assert kept.shape[0] == 4
    assert kept.numel() <= 100 + 8
    torch.testing.assert_close(kept.aminmax(dim=1), everything.aminmax(dim=1))
