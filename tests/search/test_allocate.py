"""Allocation of bits on paper: ranges, menus, allocators against brute force (vidit-q.md §6, nos. 9, 10)."""

import itertools

import numpy as np
import pytest
import torch

from qdit.errors import UserError
from qdit.model.base import Site
from qdit.policies import LayerSpec
from qdit.quant.spec import QuantSpec
from qdit.search.allocate import MILP, DynamicProgramme, Greedy, Menu
from qdit.search.bit_budget import BitBitOps, BitBytes, MeanBits, Rest
from qdit.search.bit_space import BitSpace, Ranges
from qdit.search.budget import Costs
from qdit.search.space import Gene

ALLOCATORS = [Greedy(), MILP(), DynamicProgramme()]
WIDTHS = (2, 4, 8)


def total(menu: Menu, chosen) -> float:
    return sum(errors[option] for errors, option in zip(menu.errors, chosen, strict=True))


def random_menu(seed: int, share: float, whole: bool, items: int = 8) -> Menu:
    """Eight sites of three widths; costs are whole or not, errors fall with bits."""
    rng = np.random.default_rng(seed)
    numel = rng.integers(1, 60, items) * (1024 if whole else rng.random(items))
    errors = [dict(zip(WIDTHS, np.sort(rng.lognormal(0, 3, 3))[::-1].tolist(), strict=True)) for _ in range(items)]
    costs = [{bits: float(n * bits) for bits in WIDTHS} for n in numel]
    least, most = (sum(cost[bits] for cost in costs) for bits in (2, 8))
    return Menu([(n, 0) for n in range(items)], errors, Costs(costs, least + share * (most - least)))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("whole", [True, False])
def test_programmes_find_what_brute_force_finds_and_the_list_no_more(seed, whole):
    menu = random_menu(seed, np.random.default_rng(seed).random(), whole)
    legal = [c for c in itertools.product(WIDTHS, repeat=8) if menu.table.allows(c)]
    best = min(total(menu, choice) for choice in legal)
    found = {type(a): a.choose(menu) for a in ALLOCATORS}
    assert all(menu.table.allows(tuple(choice)) for choice in found.values())
    assert total(menu, found[MILP]) == pytest.approx(best, rel=1e-6)
    assert total(menu, found[DynamicProgramme]) == pytest.approx(best, rel=1e-6 if whole else 0.02)
    assert total(menu, found[Greedy]) >= best * (1 - 1e-9)


@pytest.mark.parametrize("allocator", [MILP(), DynamicProgramme()])
def test_more_budget_is_never_worse(allocator):
    totals = []
    for share in np.linspace(0, 1, 9):
        menu = random_menu(3, float(share), whole=True)
        totals.append(total(menu, allocator.choose(menu)))
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(totals))
    assert totals[-1] == pytest.approx(sum(min(errors.values()) for errors in menu.errors))


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_what_is_too_little_is_refused_and_the_least_is_enough(allocator):
    menu = random_menu(0, 0.0, whole=True)
    assert tuple(allocator.choose(menu)) == menu.table.cheapest
    with pytest.raises(UserError, match="no choice is within the budget"):
        allocator.choose(Menu(menu.items, menu.errors, Costs(menu.table.costs, menu.table.limit * 0.99)))


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_bits_that_help_nothing_are_not_spent(allocator):
    menu = Menu([(0, 0), (1, 0)], [{4: 0.0, 8: 0.0}, {4: 1.0, 8: 0.0}], Costs([{4: 4.0, 8: 8.0}] * 2, 12.0))
    assert allocator.choose(menu) == [4, 8]


def test_the_list_serves_the_most_sensitive_first():
    errors = [{4: 1.0, 8: 0.0}, {4: 3.0, 8: 0.0}, {4: 2.0, 8: 0.0}]
    costs = [{4: 4.0, 8: 8.0}, {4: 40.0, 8: 80.0}, {4: 4.0, 8: 8.0}]
    menu = Menu([(n, 0) for n in range(3)], errors, Costs(costs, 48.0 + 40.0))
    assert Greedy().choose(menu) == [4, 8, 4]  # the large one takes all there is
    assert Greedy().choose(Menu(menu.items, errors, Costs(costs, 48.0 + 39.0))) == [8, 4, 8]  # it does not fit


@pytest.mark.parametrize("steps", [10, 20, 50, 100])
def test_no_10_every_step_is_in_one_of_four_ranges(steps):
    timesteps = list(range(1000 - 1000 // steps, -1, -1000 // steps))
    ranges = Ranges.of(timesteps, 4)
    assert sum(ranges.steps) == steps
    assert max(ranges.steps) - min(ranges.steps) <= 1
    groups = ranges.groups.of(torch.tensor(timesteps))
    assert [3 - int(group) for group in groups] == [4 * i // steps for i in range(steps)]
    for step, t in enumerate(timesteps):
        part = ranges.parts[4 * step // steps]
        assert part.last <= t <= part.first
    with pytest.raises(UserError, match="the sampler has 3 steps"):
        Ranges.of(timesteps[:3], 4)


def space(ranges: int = 4, genes: int = 3) -> BitSpace:
    layers = {b: LayerSpec(weight=QuantSpec(bits=b), activation=QuantSpec(bits=8)) for b in WIDTHS}
    sites = [Site(f"site.{n}", "qkv", n, 8 * (n + 1), 16, 4, 0) for n in range(genes)]
    return BitSpace(tuple(Gene((site,), WIDTHS) for site in sites), layers, (3, 2, 3, 2)[:ranges])


BUDGETS = [MeanBits(at_most=4.3), MeanBits(at_most=6.5, counted="storage"), BitBitOps(uniform=5), BitBytes(uniform=5)]
BUDGETS += [MeanBits(at_most=9.0, over="model"), BitBytes(at_most=1.1e-3, over="model")]
BUDGETS += [BitBitOps(at_most=4e-4, over="model")]


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: f"{type(b).__name__}-{b.over}")
@pytest.mark.parametrize("allocator", ALLOCATORS, ids=lambda a: type(a).__name__)
def test_plans_of_every_budget_against_brute_force(budget, allocator):
    """All 81² patterns of two genes in four ranges, and no budget is exceeded."""
    made, rest = space(genes=2), Rest(300, 300 * 16.0, 2e5)
    rng = np.random.default_rng(1)
    losses = [[{b: rng.random() * 4.0**-b for b in WIDTHS} for _ in range(4)] for _ in range(2)]
    limit = budget.limit(made, rest)
    assert budget.problems(made, rest) == []
    menu = budget.menu(made, losses, [0, 1], limit)
    bits = [[0] * 4 for _ in range(2)]
    menu.fill(bits, allocator.choose(menu))
    plan = tuple(map(tuple, bits))
    assert budget.spent(made, plan) <= limit * (1 + 1e-9)

    def loss(pattern, gene):
        return sum(losses[gene][r][b] for r, b in enumerate(pattern))

    patterns = list(itertools.product(WIDTHS, repeat=4))
    tables = [[(budget.cost(made, made.genes[g], p), loss(p, g)) for p in patterns] for g in range(2)]
    best = min(a[1] + b[1] for a in tables[0] for b in tables[1] if a[0] + b[0] <= limit * (1 + 1e-9))
    found = loss(plan[0], 0) + loss(plan[1], 1)
    slack = {Greedy: 100.0, MILP: 1e-6, DynamicProgramme: 1e-3}[type(allocator)]
    assert best * (1 - 1e-9) <= found <= best * (1 + slack)


def test_a_budget_below_the_fewest_bits_is_a_problem():
    found = MeanBits(at_most=1.5).problems(space(), Rest(0, 0, 0))
    assert found == [
        "search.budget cannot be met: 1.5 mean bits a weight in the searched layers is asked, and 2 bits everywhere "
        "are 2 mean bits a weight in the searched layers"
    ]
    assert MeanBits(at_most=2.0).problems(space(), Rest(0, 0, 0)) == []
    assert MeanBits(at_most=2.0, over="model").problems(space(), Rest(10, 160, 0))
