"""The search space of group sizes: genes, each a set of sites that share an input, and the group sizes that fit them.

A site's weight and its input share a group size (Q-DiT, arXiv 2406.17343), and q, k and v consume the same input, so
that a DiT block has four genes. Q-DiT's release chooses weight groups only: its search never changes those of inputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from qdit.model.base import Site
from qdit.policies import LayerSpec, Policy
from qdit.quant.spec import QuantSpec, divisors
from qdit.recipes import Recipe

Choice = tuple[int, ...]
"""A group size for each gene."""


@dataclass(frozen=True)
class Gene:
    """Sites that read one input, and the group sizes among which to choose, ascending."""

    sites: tuple[Site, ...]
    sizes: tuple[int, ...]
    bases: int = 1
    """Weights that are kept where one is chosen: one a basis (see `LayerSpec.bases`)."""

    @property
    def name(self) -> str:
        """The first site's."""
        return self.sites[0].name

    @property
    def in_features(self) -> int:
        """Channels of the input."""
        return self.sites[0].in_features

    @property
    def place(self) -> dict[str, Any]:
        """Which one it is, for the record: the first site with its role, block and stage."""
        first = self.sites[0]
        return {"site": first.name, "role": first.role, "block": first.block, "stage": first.stage}


def genes_of(recipe: Recipe, sites: Sequence[Site], sizes: Callable[[int], Sequence[int]]) -> tuple[Gene, ...]:
    """The genes of the quantized ones of `sites`, in forward order; `sizes` offers what fits a number of channels."""
    groups = groupby(recipe.scope.select(list(sites)), key=lambda s: (s.block, s.role, s.stage))
    found = []
    for _, group in groups:
        readers = tuple(group)
        offered = sorted(set(sizes(readers[0].in_features)))
        found.append(Gene(readers, tuple(offered), recipe.particular(recipe.layer, readers[0]).bases))
    return tuple(found)


@dataclass(frozen=True)
class Space:
    """Genes in forward order, and the specs in which only the group size varies."""

    genes: tuple[Gene, ...]
    layer: LayerSpec
    blocks: Mapping[str, int] = field(default_factory=dict)
    """The group sizes that formats own, by format; there is nothing else to choose."""

    @classmethod
    def of(cls, recipe: Recipe, sites: Sequence[Site], sizes: Sequence[int]) -> "Space":
        """The space of a recipe on a model; a gene gets those of `sizes` that divide its channels."""
        genes = genes_of(recipe, sites, lambda channels: [g for g in sizes if channels % g == 0])
        return cls(genes, recipe.layer, recipe.blocks)

    def problems(self) -> list[str]:
        """Why nothing can be chosen, one sentence each."""
        if not any(_grouped(spec) for spec in (self.layer.weight, self.layer.activation)):
            return [
                "a search chooses group sizes, and here neither weights nor inputs are quantized in groups; "
                "use weight=group activation=group (as quantizer=q_dit)"
            ]
        if fixed := {name: size for name, size in self.blocks.items() if any(g.sizes != (size,) for g in self.genes)}:
            return [
                f"a search chooses group sizes, and the format {name} has groups of {size}; use search=none, or "
                "bits=w4a4 and its kin, whose groups are free"
                for name, size in fixed.items()
            ]
        bare = {gene.in_features: gene.name for gene in self.genes if not gene.sizes}
        return [
            f"none of search.group_sizes divides {name} ({channels} inputs); {divisors(channels)} do"
            for channels, name in bare.items()
        ]

    def of_size(self, size: int) -> LayerSpec:
        """The specs of a site whose group size is `size`."""
        return resized(self.layer, size)

    def policy(self, choice: Choice) -> Policy:
        """The policy of a choice."""
        pairs = zip(self.genes, choice, strict=True)
        return Policy({site.name: self.of_size(size) for gene, size in pairs for site in gene.sites})

    def uniform(self, size: int) -> Choice:
        """`size` for every gene that may have it, the next smaller one for others (or their smallest)."""
        return tuple(max((g for g in gene.sizes if g <= size), default=min(gene.sizes)) for gene in self.genes)


def _grouped(spec: QuantSpec | None) -> bool:
    return spec is not None and spec.granularity == "group"


def resized(layer: LayerSpec, size: int) -> LayerSpec:
    """`layer` with another group size, where it has groups."""
    weight, activation = (
        replace(spec, group_size=size) if spec is not None and spec.granularity == "group" else spec
        for spec in (layer.weight, layer.activation)
    )
    return LayerSpec(weight=weight, activation=activation)


def uniform_policy(recipe: Recipe, sites: Sequence[Site], size: int) -> Policy:
    """Groups of `size` everywhere; where it does not divide, of the largest size below it that does.

    It depends on nothing but the recipe and `size`, so that all searches share the weights that are fitted for it.
    """
    chosen = recipe.scope.select(list(sites))
    fit = {
        s.in_features: next(g for g in range(min(size, s.in_features), 0, -1) if not s.in_features % g) for s in chosen
    }
    layers = {g: resized(recipe.layer, g) for g in fit.values()}
    return Policy({s.name: layers[fit[s.in_features]] for s in chosen})
