"""Turn a policy's bits back into a plan: for `search=fixed`, given the policy that a search for bits found."""

from collections.abc import Sequence
from dataclasses import replace

from qdit.model.base import OPERANDS, Site
from qdit.policies import LayerSpec, Policy, Span
from qdit.recipes import Recipe
from qdit.search.bit_space import BitSpace, Pattern, Plan, Ranges


def pattern_of(layer: LayerSpec, ranges: int) -> Pattern:
    """The bits of a site's weight in each range, noisiest first."""
    if not layer.spans:
        return (int(layer.weight_bits),) * ranges
    return tuple(span.weight.bits if span.weight else 16 for span in layer.spans)


def chooses_bits(policy: Policy) -> bool:
    """Whether a policy gives its weights several bit-widths, or has no group sizes to choose."""
    layers = [layer for name, layer in policy.items() if name.split(".")[-1] not in OPERANDS]
    specs = [spec for layer in layers for spec in (layer.weight, layer.activation)]
    grouped = any(spec is not None and spec.group_size for spec in specs)
    return not grouped or any(layer.spans for layer in layers) or len({layer.weight_bits for layer in layers}) > 1


def plan_of(policy: Policy, recipe: Recipe, sites: Sequence[Site]) -> tuple[BitSpace, Plan, Ranges]:
    """A policy as a plan, with the ranges of the sampler that it was made for; it must fit (`bit_misfits`)."""
    spans = next((layer.spans for layer in policy.values() if layer.spans), ())
    always = Span(first=0, last=0, steps=1, weight=None)
    ranges = Ranges(tuple(replace(span, weight=None) for span in spans) or (always,))
    names = [site.name for site in recipe.scope.select(list(sites))]
    patterns = {name: pattern_of(policy[name], len(ranges.parts)) for name in names}
    widths = {bits for pattern in patterns.values() for bits in pattern}
    space = BitSpace.of(recipe, sites, sorted(widths), ranges.steps)
    return space, tuple(patterns[gene.name] for gene in space.genes), ranges


def bit_misfits(policy: Policy, recipe: Recipe, sites: Sequence[Site]) -> list[str]:
    """In which way a policy over these sites' names is none of this recipe."""
    if len({tuple(replace(s, weight=None) for s in layer.spans) for layer in policy.values() if layer.spans}) > 1:
        return ["its sites have different ranges of timesteps"]
    space, plan, ranges = plan_of(policy, recipe, sites)
    for gene, pattern in zip(space.genes, plan, strict=True):
        expected = recipe.particular(space.layer(pattern, ranges), gene.sites[0].role)
        for site in gene.sites:
            if policy[site.name] != expected:
                return [f"{site.name} has {policy[site.name]}, this recipe makes {expected}; use its own recipe"]
    return []
