"""The search space of an allocation of bits: genes (sites that share an input), bit-widths, and ranges of timesteps.

The sampling steps are split into ranges of equal length, noisiest first: step i of S is in range ⌊ranges · i / S⌋
(ViDiT-Q, arXiv 2406.02540, has four). Bits are chosen for weights; inputs keep those of the recipe. Left out: a choice
of the inputs' bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from qdit.errors import UserError
from qdit.model.base import Site
from qdit.policies import LayerSpec, Policy, Span
from qdit.quant.named import NAMED
from qdit.quant.spec import IDENTITY_BITS
from qdit.quant.time_groups import Groups, Time, edge
from qdit.recipes import Recipe
from qdit.search.space import Gene, genes_of

Pattern = tuple[int, ...]
"""Bits of a gene in each range."""
Plan = tuple[Pattern, ...]
"""A pattern for each gene."""


@dataclass(frozen=True)
class Ranges:
    """The ranges of a sampler's timesteps, noisiest first; the weights of these spans are not used."""

    parts: tuple[Span, ...]

    @classmethod
    def of(cls, timesteps: Sequence[Time], count: int) -> "Ranges":
        """Split a sampler's timesteps, in sampling order; lengths differ by one at most.

        >>> [(part.first, part.last, part.steps) for part in Ranges.of([70, 60, 50, 40, 30, 20, 10, 0], 3).parts]
        [(70, 50, 3), (40, 20, 3), (10, 0, 2)]

        Raises:
            UserError: there are fewer steps than ranges.
        """
        if len(timesteps) < count:
            raise UserError(
                f"search.ranges={count}, and the sampler has {len(timesteps)} steps; at most so many ranges, or more "
                "of sampler.steps"
            )
        steps = groupby(enumerate(timesteps), key=lambda step: count * step[0] // len(timesteps))
        parts = [[t for _, t in part] for _, part in steps]
        return cls(tuple(Span(first=max(p), last=min(p), steps=len(p), weight=None) for p in parts))

    @property
    def steps(self) -> tuple[int, ...]:
        """How many steps each range has."""
        return tuple(part.steps for part in self.parts)

    @property
    def groups(self) -> Groups:
        """The ranges as groups of timesteps, which are numbered upwards in time."""
        ascending = self.parts[::-1]
        return Groups(tuple(edge(a.first, b.last) for a, b in pairwise(ascending)))

    def spans(self, layers: Sequence[LayerSpec]) -> tuple[Span, ...]:
        """The ranges with the weight of each."""
        return tuple(replace(part, weight=layer.weight) for part, layer in zip(self.parts, layers, strict=True))


def layer_at(recipe: Recipe, bits: int) -> LayerSpec:
    """The specs of a site whose weight has so many bits.

    Raises:
        UserError: the recipe's format does not have them.
    """
    name = recipe.weight_format
    if name is not None and bits not in (NAMED[name].bits, IDENTITY_BITS):
        raise UserError(
            f"bits.weight_format={name} has {NAMED[name].bits} bits, not {bits}; use search=none, or a recipe's own "
            "grid (bits.weight_format=null; weight.grid=float has a format for 4, 6 and 8)"
        )
    return replace(recipe, weight_bits=bits).layer


@dataclass(frozen=True)
class BitSpace:
    """Genes in forward order, whose `sizes` are bit-widths, and what a site has at each of them."""

    genes: tuple[Gene, ...]
    layers: dict[int, LayerSpec]
    steps: tuple[int, ...]
    """Sampling steps of each range, noisiest first."""
    recipe: Recipe | None = None
    """Says what sites have at other bits, and by their roles; None: what they have at the fewest, at all."""

    @classmethod
    def of(cls, recipe: Recipe, sites: Sequence[Site], widths: Sequence[int], steps: Sequence[int]) -> "BitSpace":
        """The space of a recipe on a model.

        Raises:
            UserError: the recipe's format does not have some of the widths.
        """
        layers, problems = dict[int, LayerSpec](), list[str]()
        for width in sorted(set(widths)):
            try:
                layers[width] = layer_at(recipe, width)
            except UserError as error:
                problems += [f"search.widths: {problem}" for problem in error.problems]
        if problems:
            raise UserError(*problems)
        return cls(genes_of(recipe, sites, lambda _: list(layers)), layers, tuple(steps), recipe)

    def offering(self, widths: Mapping[int, Sequence[int]]) -> "BitSpace":
        """The space in which some genes, by number, have fewer bit-widths to choose from."""
        sizes = {number: tuple(sorted(set(offered))) for number, offered in widths.items()}
        genes = [replace(gene, sizes=sizes.get(number, gene.sizes)) for number, gene in enumerate(self.genes)]
        return replace(self, genes=tuple(genes))

    @property
    def cheapest(self) -> Plan:
        """The fewest bits that each gene may have."""
        return tuple((gene.sizes[0],) * len(self.steps) for gene in self.genes)

    def at(self, gene: Gene, bits: int) -> LayerSpec:
        """The specs of a gene's sites at any bits, on offer or not.

        Raises:
            UserError: the recipe's format does not have them.
        """
        if self.recipe is None:
            layer = self.layers.get(bits, min(self.layers.items())[1])
            return replace(layer, weight=replace(layer.weight, bits=bits)) if layer.weight is not None else layer
        layer = self.layers[bits] if bits in self.layers else layer_at(self.recipe, bits)
        return replace(layer, weight=self.recipe.weight.at(gene.sites[0].role, layer.weight))

    def numel(self, gene: Gene) -> int:
        """Weights of a gene."""
        return sum(site.in_features * site.out_features for site in gene.sites)

    def uniform(self, bits: int) -> Plan:
        """The same bits everywhere."""
        return ((bits,) * len(self.steps),) * len(self.genes)

    def mean_bits(self, plan: Plan) -> float:
        """Bits of a weight, codes alone, averaged over weights and steps."""
        weights = [self.numel(gene) for gene in self.genes]
        total = sum(
            n * bits * steps
            for n, pattern in zip(weights, plan, strict=True)
            for bits, steps in zip(pattern, self.steps, strict=True)
        )
        return total / (sum(weights) * sum(self.steps))

    def layer(self, pattern: Pattern, ranges: Ranges | None) -> LayerSpec:
        """The specs of a site; patterns that change need to know the ranges."""
        if len(set(pattern)) == 1:
            return self.layers[pattern[0]]
        assert ranges is not None
        spans = ranges.spans([self.layers[bits] for bits in pattern])
        return replace(self.layers[min(pattern)], spans=spans)

    def policy(self, plan: Plan, ranges: Ranges | None = None) -> Policy:
        """The policy of a plan."""
        layers = [self.layer(pattern, ranges) for pattern in plan]
        pairs = zip(self.genes, layers, strict=True)
        return Policy({site.name: layer for gene, layer in pairs for site in gene.sites})
