"""Allocation from a file: the `policy.yaml` of an earlier run, assembled in the same way, and so with equal results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from qdit.calibration import CalibrationData
from qdit.errors import UserError
from qdit.model.base import OPERANDS, DiffusionModel, Site
from qdit.policies import LayerSpec, Policy, Span
from qdit.quantized import Allocation, Quantized
from qdit.recipes import Recipe
from qdit.search.base import Bench, GroupSearch
from qdit.search.bit_space import BitSpace, Pattern, Plan, Ranges
from qdit.search.space import Gene, Space, resized
from qdit.search.variants import BitVariants
from qdit.setting import Setting
from qdit.storage.shelf import Place


@dataclass(frozen=True, kw_only=True)
class Fixed(GroupSearch):
    """Use the group sizes, or the bits over time, of a policy; everything else must agree with the recipe.

    Args:
        policy: path of a `policy.yaml`, or of the run directory that holds one.
    """

    policy: str

    def load(self) -> Policy:
        """Read the policy.

        Raises:
            UserError: the file is missing or not a policy.
        """
        path = Path(self.policy).expanduser()
        path = path / "policy.yaml" if path.is_dir() else path
        if not path.exists():
            raise UserError(
                f"search.policy={self.policy} does not exist; give a policy.yaml, or a run directory with one"
            )
        return Policy.load(path)

    def space(self, recipe: Recipe, sites: Sequence[Site]) -> Space:
        """A space without a choice: each gene has the size of the policy."""
        policy = self.load()
        sizes = {size for layer in policy.values() if (size := group_size(layer))}
        everything = Space.of(recipe, sites, sorted(sizes))
        genes = [replace_sizes(gene, group_size(policy[gene.name])) for gene in everything.genes]
        return replace(everything, genes=tuple(genes))

    def problems(self, recipe: Recipe, sites: Sequence[Site]) -> list[str]:
        """What of the policy does not fit the recipe, the model or the budget, in one sentence."""
        try:
            found = misfits(self.load(), recipe, sites)
        except UserError as error:  # also of a policy in a format that this recipe cannot have
            return list(error.problems)
        if found:
            return [f"search.policy={self.policy} does not fit: {'; '.join(found)}"]
        if chooses_bits(self.load()):
            return []  # the budget is one of group sizes
        space = self.space(recipe, sites)
        table = self.budget.table(space)
        if not space.problems() and not table.allows(table.cheapest):
            has, limit = (self.budget.text(space, amount) for amount in (table.spent(table.cheapest), table.limit))
            return [f"search.policy={self.policy} is over the budget: it has {has}, {limit} is asked (search/budget)"]
        return space.problems()

    def summary(self, recipe: Recipe, sites: Sequence[Site]) -> str:
        """See `Search`."""
        return f"{'bits' if chooses_bits(self.load()) else 'the group sizes'} are those of {self.policy}"

    def plan(self, recipe: Recipe, sites: Sequence[Site]) -> Policy:
        """The policy itself."""
        if not chooses_bits(policy := self.load()):
            return super().plan(recipe, sites)
        names = [site.name for site in recipe.scope.select(list(sites))]
        return Policy({name: policy[name] for name in names})

    def quantize(
        self,
        model: DiffusionModel,
        recipe: Recipe,
        collect: Callable[[], CalibrationData],
        folder: Place | None,
        setting: Setting,
    ) -> Quantized:
        """See `Search`."""
        if not chooses_bits(policy := self.load()):
            return super().quantize(model, recipe, collect, folder, setting)
        space, plan, ranges = plan_of(policy, recipe, model.sites())
        return BitVariants(model, recipe, cache(collect), folder).assembled(space, plan, ranges)

    def allocate(self, bench: Bench) -> Allocation:
        """The policy's choice."""
        return Allocation(choice=tuple(gene.sizes[0] for gene in bench.space.genes))


def replace_sizes(gene: Gene, size: int | None) -> Gene:
    """A gene with one size to choose from."""
    return replace(gene, sizes=(size,) if size else ())


def group_size(layer: LayerSpec) -> int | None:
    """The group size of a layer's specs, the weight's first."""
    sizes = [spec.group_size for spec in (layer.weight, layer.activation) if spec is not None and spec.group_size]
    return sizes[0] if sizes else None


def attention_misfits(sites: Mapping[str, LayerSpec], recipe: Recipe) -> list[str]:
    """In which way a policy's operands of attentions are none of this recipe."""
    part, time = recipe.attention, recipe.activation.time
    specs = part.specs(recipe.activation_bits, time) if part is not None else {}
    if specs and not sites:
        return ["its attentions are in full precision, this recipe's are quantized (attention=none would fit)"]
    for name, layer in sites.items():
        expected = specs.get(name.split(".")[-1])
        if layer.activation != expected:
            return [f"{name} has {layer.activation}, this recipe makes {expected or 'nothing of it'} (see attention)"]
    return []


def misfits(policy: Policy, recipe: Recipe, sites: Sequence[Site]) -> list[str]:
    """In which ways a policy is none of this recipe on these sites."""
    names = {site.name for site in recipe.scope.select(list(sites))}
    attended = {name: layer for name, layer in policy.items() if name not in names and name.split(".")[-1] in OPERANDS}
    found = attention_misfits(attended, recipe)
    policy = Policy({name: layer for name, layer in policy.items() if name not in attended})
    for what, strange in (("sites unknown here", policy.keys() - names), ("sites missing", names - policy.keys())):
        if strange:
            found.append(f"{what}: {', '.join(sorted(strange)[:3])}{', …' if len(strange) > 3 else ''}")
    if found:
        return found
    if chooses_bits(policy):
        return bit_misfits(policy, recipe, sites)
    for gene in Space.of(recipe, sites, []).genes:
        layer = policy[gene.name]
        size = group_size(layer) or 1
        expected = recipe.particular(resized(recipe.layer, size), gene.sites[0])
        if layer != expected:
            found.append(f"{gene.name} has {layer}, this recipe makes {expected}; use the recipe it was made with")
        elif any(policy[site.name] != layer for site in gene.sites):
            found.append(f"{', '.join(s.name for s in gene.sites)} read one input but differ")
        elif gene.in_features % size:
            found.append(f"groups of {size} do not divide {gene.name} ({gene.in_features} inputs)")
        if found:
            break  # other sites of the policy differ in the same way; one message is enough
    return found


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
        expected = recipe.particular(space.layer(pattern, ranges), gene.sites[0])
        for site in gene.sites:
            if policy[site.name] != expected:
                return [f"{site.name} has {policy[site.name]}, this recipe makes {expected}; use its own recipe"]
    return []
