"""Q-DiT's evolution on synthetic scores (specs/q-dit.md §6, golden tests 13 and 14), and the budgets it respects."""

import itertools
import random

import numpy as np
import pytest
import torch

from qdit.errors import UserError
from qdit.eval.video import MotionEnergy
from qdit.model.base import Site
from qdit.policies import LayerSpec
from qdit.quant.spec import QuantSpec
from qdit.search import Evolution, RandomSearch
from qdit.search.budget import BitOps, Bytes, Costs, MeanGroup
from qdit.search.objective import Objective
from qdit.search.space import Gene, Space

SIZES = (32, 64, 128, 256)
ROLES = {"qkv": (256, 256), "attn_out": (256, 256), "ffn_up": (256, 1024), "ffn_down": (1024, 256)}
OBJECTIVE = Objective(name="sqnr", metric=None, num_samples=1, batch_size=1)  # type: ignore[arg-type]


def space_of(blocks: int, bits=(4, 8), sizes=SIZES) -> Space:
    def spec(bits, dynamic):
        return QuantSpec(bits=bits, granularity="group", group_size=64, dynamic=dynamic)

    genes = [
        Gene((Site(f"{block}.{role}", role, block, channels, out, 64, stage),), sizes)
        for block in range(blocks)
        for stage, (role, (channels, out)) in enumerate(ROLES.items())
    ]
    return Space(tuple(genes), LayerSpec(weight=spec(bits[0], False), activation=spec(bits[1], True)))


def evolution(**options) -> Evolution:
    given = {"budget": MeanGroup(), "group_sizes": list(SIZES), "objective": OBJECTIVE}
    return Evolution(**given | options)


def values_of(space: Space) -> np.ndarray:
    """What a gene adds to the score, by gene and size."""
    return np.random.default_rng(7).random((len(space.genes), 1000))


def separable(space: Space):
    """A score that is a sum over genes, and different for each gene and size."""
    values = values_of(space)
    return lambda choice: sum(values[gene][size] for gene, size in enumerate(choice))


def walk(search, space: Space, fitness, disturb=lambda: None, seed: int = 0):
    """All populations of a search, scored by `fitness`."""
    table, found, populations = search.budget.table(space), {}, []
    for population in search.propose(space, table, np.random.default_rng([search.seed, seed]), found):
        populations.append(population)
        for choice in population:
            assert choice not in found, "a candidate was scored twice"
            assert table.allows(choice)
            found[choice] = fitness(choice)
            disturb()
    return populations, found


def test_finds_the_optimum_of_a_separable_score():
    space = space_of(1)
    fitness, table = separable(space), MeanGroup().table(space)
    best = max(filter(table.allows, itertools.product(SIZES, repeat=4)), key=fitness)
    _, found = walk(evolution(population=12, top_k=5, generations=6), space, fitness)
    assert max(found, key=found.__getitem__) == best


def test_comes_near_the_optimum_of_a_large_space_and_far_beyond_random_choices():
    space = space_of(4)
    fitness, budget = separable(space), MeanGroup(at_least=32)
    best = fitness(tuple(max(SIZES, key=lambda size, n=n: values_of(space)[n][size]) for n in range(16)))
    _, found = walk(evolution(budget=budget, generations=40), space, fitness)
    options = {"budget": budget, "group_sizes": list(SIZES), "objective": OBJECTIVE}
    _, blind = walk(RandomSearch(**options, candidates=len(found)), space, fitness)
    assert max(found.values()) > best - 0.02
    assert max(found.values()) > max(blind.values()) + 0.5


def test_populations_are_full_and_start_at_the_preset():
    space = space_of(8)
    populations, found = walk(evolution(), space, separable(space))
    assert [len(p) for p in populations] == [50] * 11
    assert len(found) == 550 == evolution().total
    assert populations[0][0] == (128,) * 32


def test_half_of_a_population_are_crossovers_and_half_mutations_at_any_size():
    space = space_of(8)
    fitness = separable(space)
    search = evolution(population=12, top_k=2, mutation_probability=0.0, generations=3)
    populations, _ = walk(search, space, fitness)
    earlier = list(populations[0])
    for population in populations[1:]:
        first, second = sorted(earlier, key=fitness, reverse=True)[:2]
        assert all(gene in pair for choice in population[:6] for gene, *pair in zip(choice, first, second, strict=True))
        earlier += population
    assert [len(p) for p in populations] == [12] * 4  # mutations that change nothing are replaced by random ones


def test_the_k_best_are_of_all_generations():
    space = space_of(8)
    preset = (128,) * 32
    distance = lambda choice: -sum(a != b for a, b in zip(choice, preset, strict=True))  # noqa: E731
    populations, _ = walk(evolution(top_k=1, crossover_share=0.0, mutation_share=1.0), space, distance)
    for population in populations[1:]:  # nothing beats the preset, so that all mutations are of it
        assert np.mean([distance(choice) for choice in population[:25]]) > -8


def test_a_stream_of_its_own():
    space = space_of(8)
    fitness = separable(space)

    def disturb():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global state is what is disturbed

    plain = walk(evolution(), space, fitness)
    assert walk(evolution(), space, fitness, disturb) == plain
    assert walk(evolution(seed=1), space, fitness)[0] != plain[0]
    assert walk(evolution(), space, fitness, seed=1)[0] != plain[0]


def test_a_small_space_is_exhausted_and_then_left():
    space = space_of(1, sizes=(128, 256))
    populations, found = walk(evolution(), space, separable(space))
    assert len(found) == 2**4
    assert sum(map(len, populations)) == 16


def test_a_preset_over_budget_is_dropped():
    space = space_of(2)
    populations, _ = walk(evolution(budget=MeanGroup(at_least=200)), space, separable(space))
    assert (128,) * 8 not in populations[0]
    assert populations[0]


def test_draws_meet_a_budget_that_random_choices_never_do():
    space = space_of(8)
    table = MeanGroup(at_least=250).table(space)
    rng = np.random.default_rng(0)
    assert all(table.allows(table.draw(rng)) for _ in range(20))
    tight = MeanGroup(at_least=256).table(space)
    assert tight.draw(rng) == (256,) * 32


def test_mean_group_is_a_lower_bound():
    space = space_of(28)
    table = MeanGroup().table(space)
    assert table.allows((128,) * 112)
    assert not table.allows((32,) * 112)
    assert table.allows((256,) * 56 + (32,) * 56)
    assert not table.allows((128,) * 111 + (64,))


def test_bitops_and_bytes_fall_with_the_group_size():
    space = space_of(2)
    for budget in (BitOps(), Bytes()):
        spent = [budget.table(space).spent((size,) * 8) for size in SIZES]
        assert spent == sorted(spent, reverse=True)
        assert len(set(spent)) == 4
        table = budget.table(space)
        assert table.allows((128,) * 8)
        assert not table.allows((64,) * 8)


def test_bitops_by_hand():
    (gene, *_), budget = space_of(1).genes, BitOps(rescale=1024)
    assert budget.cost(space_of(1), gene, 64) == 64 * 256 * (256 * 4 * 8 + 1024 * 256 / 64)
    assert BitOps(at_most=2.0).limit(space_of(1)) == 2e9


def test_bytes_by_hand():
    space = space_of(1)
    # 256 × 256 codes of 4 bits, and 4 groups a row with a scale of 16 bits and a zero point of 4
    assert Bytes().cost(space, space.genes[0], 64) == (256 * 256 * 4 + 256 * 4 * 20) / 8


def test_a_budget_that_nothing_meets_is_named():
    (problem,) = MeanGroup(at_least=300).problems(space_of(1))
    assert problem == (
        "search.budget cannot be met: mean group size 300 is asked, and the nearest that search.group_sizes allow is "
        "mean group size 256"
    )
    assert BitOps(at_most=1e-6).problems(space_of(1))
    assert MeanGroup().problems(space_of(1)) == []


def test_values_out_of_range_are_refused_together():
    with pytest.raises(UserError) as caught:
        evolution(population=0, mutation_probability=2.0, generations=-1)
    assert len(caught.value.lines()) == 3
    with pytest.raises(UserError, match="together more than 1"):
        evolution(crossover_share=0.8)
    with pytest.raises(UserError, match="candidates=0"):
        RandomSearch(budget=MeanGroup(), group_sizes=[32], objective=OBJECTIVE, candidates=0)


def test_a_metric_without_a_direction_ranks_nothing():
    with pytest.raises(UserError, match="objective=motion: neither more nor less of its metric is better"):
        Objective(name="motion", metric=MotionEnergy(), num_samples=1, batch_size=1)


def test_table_is_a_sum():
    table = Costs([{1: 2.0, 2: 1.0}, {1: 5.0, 4: 0.5}], 3.0)
    assert table.spent((1, 4)) == 2.5
    assert table.cheapest == (2, 4)
