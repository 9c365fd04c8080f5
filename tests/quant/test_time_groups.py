"""Groups of steps: each step is in exactly one, sizes are equal, and the cheapest split is the one of brute force."""

import itertools

import pytest
import torch

from qdit.quant.time_groups import ALL, Groups, cheapest_starts, equal_starts, interpolated, range_costs, split
from qdit.sampler.spacing import SPACINGS, visited


@pytest.mark.parametrize("steps", [10, 20, 50, 100, 250])
@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_golden_5_every_step_is_in_exactly_one_group(steps, count, spacing):
    timesteps = visited(spacing, steps, 1000)
    groups = split(list(reversed(timesteps)), equal_starts(steps, count))
    assert groups.count == count
    numbers = groups.of(torch.tensor(timesteps)).tolist()
    assert numbers == [min(step * count // steps, count - 1) for step in range(steps)]
    sizes = [numbers.count(group) for group in range(count)]
    assert sum(sizes) == steps
    assert max(sizes) - min(sizes) <= 1


def test_golden_5_times_that_are_not_visited_and_batches_that_mix_them():
    groups = split(visited("leading", 10, 1000), equal_starts(10, 5))
    assert groups.edges == (200, 400, 600, 800)
    assert groups.of(torch.tensor([999, 0, 199, 200, 401])).tolist() == [4, 0, 0, 1, 2]
    every = groups.of(torch.arange(1000))
    assert every.unique().tolist() == [0, 1, 2, 3, 4]
    assert (every.diff() >= 0).all()
    assert ALL.of(torch.arange(1000)).unique().tolist() == [0]
    assert ALL.count == Groups().count == 1


def naive_costs(curve):
    steps = len(curve)
    costs = torch.full((steps, steps), float("inf"), dtype=torch.float64)
    for i, j in itertools.combinations_with_replacement(range(steps), 2):
        widest = curve[i : j + 1].amax(0).double().square()
        costs[i, j] = (j - i + 1) * (widest / curve.double().square().mean(0)).sum()
    return costs


@pytest.mark.parametrize("places", [1, 3])
def test_costs_and_the_cheapest_split_are_those_of_brute_force(places, monkeypatch):
    curve = torch.rand(9, places, generator=torch.Generator().manual_seed(1)) + 0.1
    costs = range_costs(curve)
    torch.testing.assert_close(costs, naive_costs(curve))
    monkeypatch.setattr("qdit.quant.time_groups.CHUNK_VALUES", 81)
    torch.testing.assert_close(range_costs(curve), costs)

    def total(starts):
        bounds = [0, *starts, len(curve)]
        return sum(costs[i, j - 1].item() for i, j in itertools.pairwise(bounds))

    for count in range(1, 6):
        best = min(itertools.combinations(range(1, len(curve)), count - 1), key=total)
        assert total(cheapest_starts(costs, count)) == pytest.approx(total(best))
        assert len(cheapest_starts(costs, count)) == count - 1
        assert total(best) <= total(equal_starts(len(curve), count)) + 1e-9


def test_as_many_groups_as_steps():
    curve = torch.ones(4, 1)
    assert cheapest_starts(range_costs(curve), 4) == equal_starts(4, 4) == [1, 2, 3]
    assert interpolated(curve[:1], torch.tensor([5]), torch.tensor([0, 5, 9])).flatten().tolist() == [1, 1, 1]
