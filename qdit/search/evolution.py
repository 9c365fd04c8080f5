"""Q-DiT's search (CVPR 2025, arXiv 2406.17343, Algorithm 1): evolve group sizes by the quality of what they generate.

A candidate gives each gene (the layers that share an input) a group size. The first population is a preset and random
candidates. Then, generation after generation: score all; keep the K best; half of the next population are crossovers of
two of the K (each gene from either parent), half are mutations of one (each gene drawn anew with probability p); what
is missing is filled up at random. Every candidate is within the budget.

What differs from the released code: the K best are those of all generations (its `update_top_k` does not exist); the
search has a random stream of its own (in the release sampling resets it, so that the same children are drawn again and
again); and a preset over budget is dropped.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qdit.checked import Checked, Count, Share, Whole
from qdit.errors import UserError
from qdit.search.budget import TRIES, Costs, pick
from qdit.search.scored import ScoredSearch
from qdit.search.space import Choice, Space


@dataclass(frozen=True, kw_only=True)
class Evolution(ScoredSearch, Checked):
    """Evolve a population.

    Args:
        population: candidates a generation.
        generations: after the first population.
        top_k: the best candidates so far, which are parents.
        crossover_share, mutation_share: of a population; the rest is random.
        mutation_probability: that a gene of a mutation is drawn anew.
        preset: group size of the first candidate, uniform where it divides.

    Raises:
        UserError: a value is out of range.
    """

    population: Count = 50
    generations: Whole = 10
    top_k: Count = 10
    crossover_share: Share = 0.5
    mutation_share: Share = 0.5
    mutation_probability: Share = 0.1
    preset: Count = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crossover_share + self.mutation_share > 1:
            raise UserError("search.crossover_share and search.mutation_share are together more than 1")

    @property
    def total(self) -> int:
        """Candidates, the first population among them."""
        return self.population * (1 + self.generations)

    def propose(
        self, space: Space, table: Costs, rng: np.random.Generator, found: Mapping[Choice, float]
    ) -> Iterator[list[Choice]]:
        """See `ScoredSearch`; ends early when no legal choice is left."""
        breed = Breeding(table, rng)
        population = breed.fresh(lambda: space.uniform(self.preset), 1)
        population += breed.fresh(breed.random, self.population - len(population))
        for generation in range(1 + self.generations):
            if generation > 0:
                parents = sorted(found, key=found.__getitem__, reverse=True)[: self.top_k]
                population = self.children(breed, parents)
            if not population:
                return
            yield population

    def children(self, breed: "Breeding", parents: list[Choice]) -> list[Choice]:
        """The next population."""
        crossed = breed.fresh(lambda: breed.cross(parents), round(self.population * self.crossover_share))
        left = self.population - len(crossed)
        count = min(left, round(self.population * self.mutation_share))
        mutated = breed.fresh(lambda: breed.mutate(parents, self.mutation_probability), count)
        return crossed + mutated + breed.fresh(breed.random, self.population - len(crossed) - len(mutated))


class Breeding:
    """New candidates: legal, and never proposed before.

    Args:
        table: what choices cost, and may cost.
        rng: the search's own stream.
    """

    def __init__(self, table: Costs, rng: np.random.Generator) -> None:
        self.table, self.rng = table, rng
        self.visited: set[Choice] = set()

    def fresh(self, make: Callable[[], Choice], count: int) -> list[Choice]:
        """Up to `count` new candidates from `make`, which is called at most ten times as often (as released)."""
        new: list[Choice] = []
        for _ in range(TRIES * count):
            if len(new) == count:
                break
            choice = make()
            if choice not in self.visited and self.table.allows(choice):
                self.visited.add(choice)
                new.append(choice)
        return new

    def random(self) -> Choice:
        """A random legal choice."""
        return self.table.draw(self.rng)

    def cross(self, parents: list[Choice]) -> Choice:
        """Each gene of either of two parents."""
        first, second = (parents[int(self.rng.integers(len(parents)))] for _ in range(2))
        return tuple(
            a if heads else b for a, b, heads in zip(first, second, self.rng.random(len(first)) < 0.5, strict=True)
        )

    def mutate(self, parents: list[Choice], probability: float) -> Choice:
        """A parent, some of whose genes are drawn anew (they may come out the same, as released)."""
        parent = parents[int(self.rng.integers(len(parents)))]
        hit = self.rng.random(len(parent)) < probability
        genes = zip(parent, self.table.costs, hit, strict=True)
        return tuple(pick(list(cost), self.rng) if changed else size for size, cost, changed in genes)
