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


@dataclass(frozen=True)
class BitSpace:
    """Genes in forward order, whose `sizes` are bit-widths, and what a site has at each of them."""

    genes: tuple[Gene, ...]
    layers: dict[int, LayerSpec]
    steps: tuple[int, ...]
    """Sampling steps of each range, noisiest first."""

    @classmethod
    def of(cls, recipe: Recipe, sites: Sequence[Site], widths: Sequence[int], steps: Sequence[int]) -> "BitSpace":
        """The space of a recipe on a model."""
        layers = {width: replace(recipe, weight_bits=width).layer for width in sorted(set(widths))}
        return cls(genes_of(recipe, sites, lambda _: list(layers)), layers, tuple(steps))

    def offering(self, widths: Mapping[int, Sequence[int]]) -> "BitSpace":
        """The space in which some genes, by number, have fewer bit-widths to choose from."""
        sizes = {number: tuple(sorted(set(offered))) for number, offered in widths.items()}
        genes = [replace(gene, sizes=sizes.get(number, gene.sizes)) for number, gene in enumerate(self.genes)]
        return replace(self, genes=tuple(genes))

    @property
    def cheapest(self) -> Plan:
        """The fewest bits that each gene may have."""
        return tuple((gene.sizes[0],) * len(self.steps) for gene in self.genes)

    def at(self, bits: int) -> LayerSpec:
        """The specs at any bits, on offer or not."""
        if bits in self.layers:
            return self.layers[bits]
        layer = min(self.layers.items())[1]
        return replace(layer, weight=replace(layer.weight, bits=bits)) if layer.weight is not None else layer

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
