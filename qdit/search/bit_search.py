"""The base of searches for bits: they implement `find`, which chooses the bits of each gene in each range of timesteps.

What is around it is the same for all: the ranges, the space and the budget, whose problems are reported before anything
is computed, the layers of each bit-width, and what is recorded of the plan.
"""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from qdit.calibration import CalibrationData
from qdit.errors import UserError, from_problems
from qdit.model.base import DiffusionModel, Site
from qdit.policies import Policy
from qdit.quantized import Allocation, Quantized
from qdit.recipes import Recipe
from qdit.search.base import Search
from qdit.search.bit_budget import BitBudget, Rest
from qdit.search.bit_space import BitSpace, Plan, Ranges
from qdit.search.variants import BitVariants
from qdit.setting import Setting
from qdit.storage.shelf import Place

log = logging.getLogger("qdit")


@dataclass(frozen=True)
class BitBench:
    """What a search for bits works with.

    Args:
        space: the genes and their bit-widths.
        ranges: of the sampler.
        rest: what the model has besides.
        variants: the layers of each bit-width, and the model.
        setting: the run around it.
        folder: where it saves what is finished.
    """

    space: BitSpace
    ranges: Ranges
    rest: Rest
    variants: BitVariants
    setting: Setting
    folder: Place | None


class BitSearch(Search):
    """Chooses bits of weights under `budget`; its fields are those of each search, in the order that is hashed."""

    budget: BitBudget
    ranges: int
    """Of the sampling steps, of equal length."""

    @abstractmethod
    def space(self, recipe: Recipe, sites: Sequence[Site], steps: Sequence[int] | None = None) -> BitSpace:
        """What there is to choose; steps are those of each range, if a sampler is known.

        Raises:
            UserError: the recipe's format does not have some of the widths.
        """

    @abstractmethod
    def misfits(self, space: BitSpace) -> list[str]:
        """What cannot work in a space, whatever the budget, one sentence each."""

    @abstractmethod
    def find(self, bench: BitBench) -> tuple[Plan, list[dict]]:
        """The plan, and what is recorded of each gene."""

    def unusable(self, model: DiffusionModel, space: BitSpace) -> list[str]:
        """What else cannot work on a loaded model, one sentence each."""
        return []

    def problems(self, recipe: Recipe, sites: Sequence[Site]) -> list[str]:
        """See `Search`."""
        try:
            space = self.space(recipe, sites)
            return self.misfits(space) or self.budget.problems(space, Rest.least(sites, recipe))
        except UserError as error:  # widths that the recipe's format does not have
            return list(error.problems)

    def plan(self, recipe: Recipe, sites: Sequence[Site]) -> Policy:
        """The cheapest policy: the fewest bits everywhere."""
        space = self.space(recipe, sites)
        return space.policy(space.cheapest)

    def quantize(
        self,
        model: DiffusionModel,
        recipe: Recipe,
        collect: Callable[[], CalibrationData],
        folder: Place | None,
        setting: Setting,
    ) -> Quantized:
        """See `Search`."""
        ranges = Ranges.of(setting.sampler.timesteps(model), self.ranges)
        space, rest = self.space(recipe, model.sites(), ranges.steps), Rest.of(model, recipe)
        if found := self.budget.problems(space, rest) + self.unusable(model, space):
            raise from_problems(found, "this search")
        variants = BitVariants(model, recipe, cache(collect), folder)
        plan, bits = self.find(BitBench(space, ranges, rest, variants, setting, folder))
        spent = self.budget.text(space, self.budget.spent(space, plan), rest)
        log.info("search: %s", spent)
        details = {
            "budget": self.budget.text(space, self.budget.limit(space, rest), rest),
            "spent": spent,
            "mean_bits": space.mean_bits(plan),
            "steps": list(space.steps),
            "bits": bits,
        }
        return replace(variants.assembled(space, plan, ranges), allocation=Allocation(choice=(), details=details))
