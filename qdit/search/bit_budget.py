"""What an allocation of bits may cost: mean weight bits, bytes or BitOps, over the quantized layers or the whole model.

Published budgets are means over the quantized layers; what stays in full precision is then free. A budget over the
whole model counts that too, with everything that the cost ledger counts. A budget is a hard bound (MixDQ's released
program allows two percent more).

Mean bits and BitOps are means over sampling steps. Bytes are those of all weights that must be stored: a site that
changes its bits over time keeps a weight for each bit-width, and one in several bases over time one for each basis.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from qdit.checked import Checked, Count, Positive
from qdit.errors import UserError
from qdit.ledger import FULL_BITS, activation_storage_bits, ledger, weight_storage_bits
from qdit.model.base import DiffusionModel, Site
from qdit.policies import Policy
from qdit.recipes import Recipe
from qdit.search.allocate import Menu
from qdit.search.bit_space import BitSpace, Pattern, Plan
from qdit.search.budget import Costs, relaxed
from qdit.search.space import Gene

Losses = Sequence[Sequence[dict[int, float]]]
"""For each gene and range, the loss by bits."""


@dataclass(frozen=True)
class Rest:
    """The cost of what the model has besides the searched layers."""

    numel: int
    """Parameters."""
    storage_bits: float
    """Bits in which they, and all else that is kept, are stored."""
    bops: float
    """BitOps of a forward pass of one sample."""

    @classmethod
    def of(cls, model: DiffusionModel, recipe: Recipe) -> "Rest":
        """Everything else of a model, attentions with their operands' bits and a transform's run time included."""
        sites, left = model.sites(), recipe.run_time(model)
        whole = ledger(model.denoiser, sites, recipe.with_attention(Policy(), model), model.attentions(), left)
        searched = recipe.scope.select(sites)
        numel = sum(s.in_features * s.out_features for s in searched)
        stored = 8 * (whole.model_bytes + 1) - numel * FULL_BITS  # the ledger drops part of a byte
        bops = whole.bops - sum(s.macs for s in searched) * FULL_BITS**2
        return cls(sum(p.numel() for p in model.denoiser.parameters()) - numel, stored, bops)

    @classmethod
    def least(cls, sites: "Sequence[Site]", recipe: Recipe) -> "Rest":
        """A lower bound on it, from a list of the sites alone."""
        others = [s for s in sites if recipe.scope.why_not(s) is not None]
        numel = sum(s.in_features * s.out_features for s in others)
        return cls(numel, numel * FULL_BITS, float(sum(s.macs for s in others) * FULL_BITS**2))


@dataclass(frozen=True, kw_only=True)
class BitBudget(ABC):
    """A bound on what a plan costs.

    Args:
        over: whether the searched layers alone count, or the whole model.
    """

    over: Literal["quantized", "model"] = "quantized"

    @abstractmethod
    def price(self, space: BitSpace, gene: Gene, bits: int) -> float:
        """What a gene costs at this many bits (in one step, or to store)."""

    @abstractmethod
    def menu(self, space: BitSpace, losses: Losses, genes: Sequence[int], limit: float) -> Menu:
        """What an allocator may choose for some of the genes, within a limit in the unit of `cost`."""

    @abstractmethod
    def cost(self, space: BitSpace, gene: Gene, pattern: Pattern) -> float:
        """What a gene costs with bits that change over time."""

    @abstractmethod
    def limit(self, space: BitSpace, rest: Rest) -> float:
        """The most that the searched layers may cost together."""

    @abstractmethod
    def text(self, space: BitSpace, amount: float, rest: Rest) -> str:
        """A cost of the searched layers, in words."""

    def spent(self, space: BitSpace, plan: Plan) -> float:
        """What a plan costs."""
        return sum(self.cost(space, gene, pattern) for gene, pattern in zip(space.genes, plan, strict=True))

    def problems(self, space: BitSpace, rest: Rest) -> list[str]:
        """That no plan is legal, in a sentence."""
        least = self.spent(space, space.cheapest)
        limit = self.limit(space, rest)
        if least <= relaxed(limit):
            return []
        wanted, found = self.text(space, limit, rest), self.text(space, least, rest)
        fewest = sorted({gene.sizes[0] for gene in space.genes})
        bits = " and ".join(map(str, fewest))
        return [f"search.budget cannot be met: {wanted} is asked, and {bits} bits everywhere are {found}"]

    def place(self) -> str:
        """Where it counts, in words."""
        return "the searched layers" if self.over == "quantized" else "the whole model"


class _EachStep(BitBudget):
    """Costs are sums over sampling steps: of the weight that a step uses."""

    def cost(self, space: BitSpace, gene: Gene, pattern: Pattern) -> float:
        """See `BitBudget`."""
        return sum(n * self.price(space, gene, bits) for n, bits in zip(space.steps, pattern, strict=True))

    def menu(self, space: BitSpace, losses: Losses, genes: Sequence[int], limit: float) -> Menu:
        """Every gene chooses in every range by itself."""
        items = [(g, r) for g in genes for r in range(len(space.steps))]
        places = [(space.genes[g], space.steps[r]) for g, r in items]
        costs = [{bits: steps * self.price(space, gene, bits) for bits in gene.sizes} for gene, steps in places]
        return Menu(items, [losses[g][r] for g, r in items], Costs(costs, limit))


@dataclass(frozen=True, kw_only=True)
class MeanBits(_EachStep, Checked):
    """At most this many bits per weight, averaged over weights and steps.

    Args:
        at_most: bits.
        counted: `codes` alone, as papers do, or `storage`, with scales and zero points.

    Raises:
        UserError: `at_most` is not above 0.
    """

    at_most: Positive = 5.0
    counted: Literal["codes", "storage"] = "codes"

    def price(self, space: BitSpace, gene: Gene, bits: int) -> float:
        """Bits of the weights."""
        if self.counted == "codes":
            return space.numel(gene) * bits
        layer = space.at(gene, bits)
        grid = activation_storage_bits(layer.activation)
        return gene.bases * sum(grid + weight_storage_bits(site, layer.weight) for site in gene.sites)

    def _weights(self, space: BitSpace, rest: Rest) -> int:
        return sum(map(space.numel, space.genes)) + rest.numel * (self.over == "model")

    def _others(self, rest: Rest) -> float:
        return (rest.numel * FULL_BITS if self.counted == "codes" else rest.storage_bits) * (self.over == "model")

    def limit(self, space: BitSpace, rest: Rest) -> float:
        """See `BitBudget`."""
        return (self.at_most * self._weights(space, rest) - self._others(rest)) * sum(space.steps)

    def text(self, space: BitSpace, amount: float, rest: Rest) -> str:
        """See `BitBudget`."""
        bits = (amount / sum(space.steps) + self._others(rest)) / self._weights(space, rest)
        return f"{bits:.4g} mean bits a weight in {self.place()}"


@dataclass(frozen=True, kw_only=True)
class _AsUniform(BitBudget, Checked):
    """A cost bounded by an absolute number, or by what one bit-width everywhere costs.

    Args:
        uniform: bits.
        at_most: in the budget's unit; None takes `uniform`.

    Raises:
        UserError: a number is not above 0.
    """

    uniform: Count = 4
    at_most: Positive | None = None

    def limit(self, space: BitSpace, rest: Rest) -> float:
        """See `BitBudget`."""
        if self.at_most is not None:
            return self.absolute(space, self.at_most, rest)
        try:
            return self.spent(space, space.uniform(self.uniform))
        except UserError as error:
            raise UserError(*(f"search.budget.uniform={self.uniform}: {each}" for each in error.problems)) from error

    @abstractmethod
    def absolute(self, space: BitSpace, amount: float, rest: Rest) -> float:
        """A bound in the budget's unit as one on the searched layers, in the unit of `cost`."""


@dataclass(frozen=True, kw_only=True)
class BitBitOps(_EachStep, _AsUniform):
    """BitOps of a forward pass, averaged over steps; `at_most` in 1e9 a sample."""

    def price(self, space: BitSpace, gene: Gene, bits: int) -> float:
        """BitOps of a sample and forward pass."""
        layer = space.at(gene, bits)
        return sum(s.macs for s in gene.sites) * layer.weight_bits * layer.operand_bits

    def absolute(self, space: BitSpace, amount: float, rest: Rest) -> float:
        """See `_AsUniform`."""
        return (amount * 1e9 - rest.bops * (self.over == "model")) * sum(space.steps)

    def text(self, space: BitSpace, amount: float, rest: Rest) -> str:
        """See `BitBudget`."""
        bops = amount / sum(space.steps) + rest.bops * (self.over == "model")
        return f"{bops / 1e9:.4g} GBitOps in {self.place()}"


@dataclass(frozen=True, kw_only=True)
class BitBytes(_AsUniform):
    """Stored size, scales and zero points included, as the cost ledger counts; `at_most` in MB."""

    def price(self, space: BitSpace, gene: Gene, bits: int) -> float:
        """Bytes of the weights."""
        return gene.bases * sum(weight_storage_bits(site, space.at(gene, bits).weight) for site in gene.sites) / 8

    def cost(self, space: BitSpace, gene: Gene, pattern: Pattern) -> float:
        """Bytes of all weights that are kept, and of the input's grid."""
        grid = gene.bases * activation_storage_bits(space.at(gene, pattern[0]).activation) * len(gene.sites) / 8
        return grid + sum(self.price(space, gene, bits) for bits in set(pattern))

    def menu(self, space: BitSpace, losses: Losses, genes: Sequence[int], limit: float) -> Menu:
        """A gene chooses which weights to store; each range uses the stored one of least loss, of ties the first."""
        errors, costs = [], []
        for g in genes:
            sizes = space.genes[g].sizes
            kept = [set_ for n in range(1, len(sizes) + 1) for set_ in combinations(sizes, n)]
            patterns = {tuple(min(widths, key=loss.__getitem__) for loss in losses[g]) for widths in kept}
            found = sorted(patterns, key=lambda pattern: self.cost(space, space.genes[g], pattern))
            costs.append({pattern: self.cost(space, space.genes[g], pattern) for pattern in found})
            errors.append({p: sum(loss[b] for loss, b in zip(losses[g], p, strict=True)) for p in found})
        return Menu([(g, None) for g in genes], errors, Costs(costs, limit))

    def absolute(self, space: BitSpace, amount: float, rest: Rest) -> float:
        """See `_AsUniform`."""
        return amount * 1e6 - rest.storage_bits / 8 * (self.over == "model")

    def text(self, space: BitSpace, amount: float, rest: Rest) -> str:
        """See `BitBudget`."""
        size = amount + rest.storage_bits / 8 * (self.over == "model")
        return f"{size / 1e6:.4g} MB in {self.place()}"
