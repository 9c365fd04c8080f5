"""Quantized layers of every group size or bit-width, made once; a candidate is assembled from them and needs no fit.

The layers of group size g come from one fit of the recipe with groups of g everywhere. The final model is assembled
from the very same layers, so that a candidate's score is that of the deployed model, and a policy can be built again
from its file. (Q-DiT's release scores round-to-nearest weights and cannot deploy what it finds.)

The layers of b bits come from one fit of the recipe with b bits everywhere, too. So a plan of b bits everywhere equals
that fit, and the layers of a plan, which may have several weights over time, are the very layers whose sensitivity was
measured.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn

from qdit.calibration import CalibrationData
from qdit.fitting import fit_policy
from qdit.model.base import DiffusionModel
from qdit.nn.switch import Now, TimedLinear
from qdit.policies import Policy
from qdit.quantized import Quantized
from qdit.recipes import Recipe
from qdit.search.bit_space import BitSpace, Pattern, Plan, Ranges
from qdit.search.space import Choice, Space, uniform_policy
from qdit.storage.shelf import Place
from qdit.transform import Rewrite, Trial, rewritten

log = logging.getLogger("qdit")


@dataclass
class Fits:
    """Fits of one recipe that differ in one number, made when first asked for, on one transformed network.

    Args:
        model: the full-precision model.
        recipe: the one that is varied.
        collect: makes the calibration data.
        folder: where fits save finished blocks, each in a subfolder; None saves nothing.
    """

    model: DiffusionModel
    recipe: Recipe
    collect: Callable[[], CalibrationData]
    folder: Place | None = None
    made: dict[int, Quantized] = field(default_factory=dict)

    @cached_property
    def rewrite(self) -> Rewrite:
        """What the recipe's transform makes of the model: one for all fits."""
        sites = self.recipe.scope.select(self.model.sites())
        return rewritten(self.recipe.transform, self.model, sites, self.collect, Trial(self.recipe), self.folder)

    def attention(self, chosen: Mapping[str, Quantized]) -> dict[str, nn.Module]:
        """The quantizers of each attention from the fit of its queries, beside whose weights steps may be learned.

        Args:
            chosen: the fit of each site; of an attention whose layers have none any one's will do.
        """
        found = {}
        for attention in self.model.attentions():
            own = [fit for site, fit in chosen.items() if site.startswith(f"{attention.name}.")]
            queries = chosen.get(f"{attention.name}.to_q")
            fit = queries or next(iter(own or chosen.values()))
            if attention.processor in fit.attention:
                found[attention.processor] = fit.attention[attention.processor]
        return found


class Variants(Fits):
    """The fits of a recipe by group size."""

    def of_size(self, size: int) -> Quantized:
        """The fit with groups of `size` everywhere."""
        if size not in self.made:
            log.info("search: weights in groups of %d", size)
            folder = self.folder / f"group_{size:04d}" if self.folder else None
            policy = uniform_policy(self.recipe, self.model.sites(), size)
            self.made[size] = fit_policy(self.model, self.recipe, policy, self.collect, folder, self.rewrite)
        return self.made[size]

    def assembled(self, space: Space, choice: Choice) -> Quantized:
        """The model in which each gene has the layers of its group size."""
        pairs = zip(space.genes, choice, strict=True)
        fits = {s.name: self.of_size(size) for gene, size in pairs for s in gene.sites}
        layers, attention = {name: fit.layers[name] for name, fit in fits.items()}, self.attention(fits)
        policy = self.recipe.completed(space.policy(choice), self.model)
        return Quantized(policy, layers, attention, rewrite=self.rewrite)


class BitVariants(Fits):
    """The fits of a recipe by bits of the weights."""

    def at(self, bits: int) -> Quantized:
        """The fit with so many bits everywhere."""
        if bits not in self.made:
            log.info("search: weights of %d bits", bits)
            folder = self.folder / f"bits_{bits:02d}" if self.folder else None
            recipe = replace(self.recipe, weight_bits=bits)
            layers = dict.fromkeys((s.name for s in recipe.scope.select(self.model.sites())), recipe.layer)
            made = fit_policy(self.model, recipe, Policy(layers), self.collect, folder, self.rewrite)
            self.made[bits] = made
        return self.made[bits]

    def layer(self, site: str, pattern: Pattern, now: Now) -> nn.Module:
        """The layer of a site whose bits follow a pattern over ranges, noisiest first."""
        kept = sorted(set(pattern), reverse=True)
        layers = [self.at(bits).layers[site] for bits in kept]
        if len(layers) == 1:
            return layers[0]
        return TimedLinear(layers, [kept.index(bits) for bits in reversed(pattern)], now)

    def assembled(self, space: BitSpace, plan: Plan, ranges: Ranges) -> Quantized:
        """The model in which each gene has the weights of its pattern."""
        now = Now(self.model.clock, ranges.groups)
        pairs = list(zip(space.genes, plan, strict=True))
        layers = {s.name: self.layer(s.name, pattern, now) for gene, pattern in pairs for s in gene.sites}
        attention = self.attention({s.name: self.at(pattern[0]) for gene, pattern in pairs for s in gene.sites})
        policy = self.recipe.completed(space.policy(plan, ranges), self.model)
        return Quantized(policy, layers, attention, rewrite=self.rewrite)
