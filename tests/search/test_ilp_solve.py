"""Allocation by an integer programme against brute force."""

import itertools

import numpy as np
import pytest

from qdit.errors import UserError
from qdit.search.budget import Costs
from qdit.search.ilp import solve


@pytest.mark.parametrize("seed", range(20))
def test_the_programme_finds_what_brute_force_finds(seed):
    rng = np.random.default_rng(seed)
    sizes = (32, 64, 128, 256)
    errors = [dict(zip(sizes, rng.random(4) * 10.0 ** rng.integers(-6, 6), strict=True)) for _ in range(5)]
    costs = [dict(zip(sizes, rng.integers(1, 1000, 4) * 1000.0, strict=True)) for _ in range(5)]
    choices = list(itertools.product(sizes, repeat=5))
    limit = float(np.quantile([Costs(costs, 0).spent(c) for c in choices], rng.random()))
    table = Costs(costs, limit)

    def total(choice):
        return sum(error[size] for error, size in zip(errors, choice, strict=True))

    best = min(filter(table.allows, choices), key=total)
    chosen = solve(errors, table)
    assert table.allows(chosen)
    assert total(chosen) == pytest.approx(total(best), rel=1e-6)


def test_what_the_programme_cannot_solve_is_said():
    with pytest.raises(UserError, match="no choice is within the budget"):
        solve([{1: 0.0}], Costs([{1: 2.0}], 1.0))
    with pytest.raises(UserError, match="not finite"):
        solve([{1: float("nan")}], Costs([{1: 2.0}], 3.0))
    assert solve([{1: 0.0, 2: 0.0}], Costs([{1: 1.0, 2: 2.0}], 1.0)) == (1,)
