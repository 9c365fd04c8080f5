"""Quantized layers of every bit-width, made once; a plan is assembled from them, with several weights per site.

The layers of b bits come from one fit of the recipe with b bits everywhere. So a plan of b bits everywhere equals that
fit, and the layers of a plan are the very layers whose sensitivity was measured.
"""

import logging
from dataclasses import replace

from torch import nn

from qdit.fitting import fit_policy
from qdit.nn.switch import Now, TimedLinear
from qdit.policies import Policy
from qdit.quantized import Quantized
from qdit.search.bit_space import BitSpace, Pattern, Plan, Ranges
from qdit.search.variants import Fits

log = logging.getLogger("qdit")


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
        # Bits are of linear layers; all fits calibrate the attentions in the same way, so any one's can be used.
        attention = self.at(plan[0][0]).attention
        policy = self.recipe.completed(space.policy(plan, ranges), self.model)
        return Quantized(policy, layers, attention, rewrite=self.rewrite)
