"""Budgets of group sizes: what an allocation may cost. A budget is a sum over genes, as an integer program needs it.

Q-DiT's paper bounds BitOps and gives no formula; its released code asks for a mean group size of at least 128, not
weighted by the layers' sizes, and that is the default here.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qdit.checked import Checked, Count, Positive
from qdit.ledger import activation_storage_bits, weight_storage_bits
from qdit.search.space import Choice, Gene, Space

TRIES = 10  # draws before an illegal one is made legal
SLACK = 1e-9  # relative tolerance of sums of floats


def relaxed(limit: float) -> float:
    """A limit with the tolerance that sums of costs need, because they are not exact."""
    return limit + SLACK * abs(limit)


@dataclass(frozen=True)
class Costs:
    """The costs of a space under a budget: for each gene, from group size to cost; and the most that may be spent."""

    costs: Sequence[dict[int, float]]
    limit: float

    def spent(self, choice: Choice) -> float:
        """The cost of a choice."""
        return sum(cost[size] for cost, size in zip(self.costs, choice, strict=True))

    def allows(self, choice: Choice) -> bool:
        """Whether a choice is within the budget."""
        return self.spent(choice) <= relaxed(self.limit)

    @property
    def cheapest(self) -> Choice:
        """The choice that costs least."""
        return tuple(min(cost, key=cost.__getitem__) for cost in self.costs)

    def draw(self, rng: np.random.Generator) -> Choice:
        """A random legal choice: uniform if a few tries find one, else one whose random genes are made cheaper."""
        choice: Choice = ()
        for _ in range(TRIES):
            choice = tuple(pick(list(cost), rng) for cost in self.costs)
            if self.allows(choice):
                return choice
        sizes = list(choice)
        while not self.allows(tuple(sizes)):
            gene = int(rng.integers(len(sizes)))
            cost = self.costs[gene]
            sizes[gene] = pick([g for g in cost if cost[g] < cost[sizes[gene]]] or [sizes[gene]], rng)
        return tuple(sizes)


def pick(values: Sequence[int], rng: np.random.Generator) -> int:
    """One of `values`, all equally likely."""
    return values[int(rng.integers(len(values)))]


class Budget(ABC):
    """A bound on the sum of the genes' costs."""

    @abstractmethod
    def cost(self, space: Space, gene: Gene, size: int) -> float:
        """The cost of a gene with groups of `size`, in the unit of `limit`."""

    @abstractmethod
    def limit(self, space: Space) -> float:
        """The most that the genes may cost together."""

    @abstractmethod
    def text(self, space: Space, amount: float) -> str:
        """An amount in words."""

    def table(self, space: Space) -> Costs:
        """All costs of a space, and the limit."""
        costs = [{size: self.cost(space, gene, size) for size in gene.sizes} for gene in space.genes]
        return Costs(costs, self.limit(space))

    def problems(self, space: Space) -> list[str]:
        """That no choice is legal, in a sentence."""
        table = self.table(space)
        if table.allows(table.cheapest):
            return []
        best, limit = (self.text(space, amount) for amount in (table.spent(table.cheapest), table.limit))
        return [
            f"search.budget cannot be met: {limit} is asked, and the nearest that search.group_sizes allow is {best}"
        ]


@dataclass(frozen=True, kw_only=True)
class MeanGroup(Budget):
    """A mean group size (Q-DiT's release): the mean over genes, whatever the size of their layers.

    Args:
        at_least: the smallest mean that is allowed.
    """

    at_least: float = 128

    def cost(self, space: Space, gene: Gene, size: int) -> float:
        """Minus the group size: large groups are cheap."""
        return -size

    def limit(self, space: Space) -> float:
        """See `Budget`."""
        return -self.at_least * len(space.genes)

    def text(self, space: Space, amount: float) -> str:
        """See `Budget`."""
        return f"mean group size {-amount / len(space.genes):g}"


@dataclass(frozen=True, kw_only=True)
class _AsUniform(Budget, Checked):
    """A cost bounded by an absolute number, or by what one group size everywhere costs.

    Args:
        uniform: the group size.
        at_most: in the budget's unit (1e9 BitOps, MB); None takes `uniform`.

    Raises:
        UserError: a number is not above 0.
    """

    uniform: Count = 128
    at_most: Positive | None = None
    unit: ClassVar[float]
    """Of `at_most`, in that of `cost`."""

    def limit(self, space: Space) -> float:
        """See `Budget`."""
        if self.at_most is not None:
            return self.at_most * self.unit
        pairs = zip(space.genes, space.uniform(self.uniform), strict=True)
        return sum(self.cost(space, gene, size) for gene, size in pairs)


@dataclass(frozen=True, kw_only=True)
class BitOps(_AsUniform):
    """BitOps of the searched layers, B(g) = Σ tokens · out · (in · w bits · a bits + rescale · in / g).

    The formula is ours: with fixed bits the products do not depend on g; what depends on it is the rescaling of partial
    sums, one for each group and output.

    Args:
        uniform, at_most: see `_AsUniform`; `at_most` in 1e9 BitOps of a sample and forward pass.
        rescale: BitOps of a rescaling, 32 x 32 for a float32 multiply-add.
    """

    rescale: float = 1024
    unit = 1e9

    def cost(self, space: Space, gene: Gene, size: int) -> float:
        """BitOps of a sample and forward pass."""
        bits = space.layer.weight_bits * space.layer.operand_bits
        return sum(
            s.tokens * s.out_features * (s.in_features * bits + self.rescale * s.in_features / size) for s in gene.sites
        )

    def text(self, space: Space, amount: float) -> str:
        """See `Budget`."""
        return f"{amount / self.unit:.4g} GBitOps in the searched layers"


@dataclass(frozen=True, kw_only=True)
class Bytes(_AsUniform):
    """Stored size of the searched layers, scales and zero points included, as the cost ledger counts them.

    Args:
        uniform, at_most: see `_AsUniform`; `at_most` in MB.
    """

    unit = 1e6

    def cost(self, space: Space, gene: Gene, size: int) -> float:
        """Bytes of weights and of static grids of inputs, in all bases."""
        layer = space.of_size(size)
        stored = sum(
            weight_storage_bits(s, layer.weight) + activation_storage_bits(layer.activation) for s in gene.sites
        )
        return gene.bases * stored / 8

    def text(self, space: Space, amount: float) -> str:
        """See `Budget`."""
        return f"{amount / self.unit:.4g} MB in the searched layers"
