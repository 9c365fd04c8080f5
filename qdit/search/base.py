"""The interface of searches: find a policy (an allocation of bits or group sizes) for a model within a budget.

A search holds config only. `problems` reports what cannot work before anything is computed. Searches for group sizes
(`GroupSearch`) implement `allocate`, which chooses a size for every gene (the sites that share an input); `quantize`
then assembles the chosen layers, in the same way for all of them. `qdit.search.bit_search` chooses bits.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar

from qdit.calibration import CalibrationData
from qdit.dataset.base import Source
from qdit.eval.preflight import Prepared, prepare
from qdit.model.base import DiffusionModel, Site
from qdit.policies import Policy
from qdit.quantized import Allocation, Quantized
from qdit.recipes import Recipe
from qdit.search.budget import Budget, Costs
from qdit.search.objective import Objective
from qdit.search.space import Space
from qdit.search.variants import Variants
from qdit.seeding import SEARCH
from qdit.setting import Setting
from qdit.storage.shelf import Place

log = logging.getLogger("qdit")


@dataclass
class Bench:
    """What a search works with: the model, the run around it, and quantized layers of every group size."""

    model: DiffusionModel
    recipe: Recipe
    space: Space
    table: Costs
    collect: Callable[[], CalibrationData]
    setting: Setting
    folder: Place | None = None
    """Where fits save what is finished."""

    @cached_property
    def variants(self) -> Variants:
        """The layers that are deployed."""
        return Variants(self.model, self.recipe, self.collect, self.folder)


@dataclass(frozen=True, kw_only=True)
class Search(ABC):
    """Improves a policy under a budget."""

    needs_calibration: ClassVar[bool] = False
    """Whether calibration data is needed, whatever the rounding."""

    @property
    def measured(self) -> Objective | None:
        """The objective, if candidates are sampled and scored."""
        return None

    @abstractmethod
    def problems(self, recipe: Recipe, sites: Sequence[Site]) -> list[str]:
        """What cannot work on a model with these sites, one sentence each."""

    @abstractmethod
    def plan(self, recipe: Recipe, sites: Sequence[Site]) -> Policy:
        """A policy to show before the search, one that it might find."""

    @abstractmethod
    def summary(self, recipe: Recipe, sites: Sequence[Site]) -> str:
        """What the search will do, in a sentence."""

    @abstractmethod
    def quantize(
        self,
        model: DiffusionModel,
        recipe: Recipe,
        collect: Callable[[], CalibrationData],
        folder: Place | None,
        setting: Setting,
    ) -> Quantized:
        """Search, and assemble the model from the layers that were found; arguments as `qdit.method.quantize`."""

    def preflight(self, dataset: Source, cache_dir: Path, seed: int = 0) -> Prepared:
        """The objective's extractors and references.

        Args:
            dataset: what candidates are conditioned on and compared with.
            cache_dir: where `qdit-refs` keeps references.
            seed: the run's.

        Raises:
            UserError: weights or reference statistics are missing, these are of images of another size, or the metric
                cannot judge the prompts of candidates.
        """
        if (objective := self.measured) is None:
            return Prepared({}, {})
        drawn = range(SEARCH, SEARCH + objective.num_samples)
        numbers = dataset.labels(drawn, seed + objective.seed).tolist()
        return prepare(
            {"objective": objective.metric},
            n=objective.num_samples,
            dataset=dataset.reference,
            cache_dir=cache_dir,
            image_size=dataset.image_size,
            prompts=dataset.asked(numbers)["prompts"] or (),
            suite=dataset.suite,
            group="search",
        )


@dataclass(frozen=True, kw_only=True)
class GroupSearch(Search):
    """Chooses group sizes under `budget`."""

    budget: Budget

    @abstractmethod
    def space(self, recipe: Recipe, sites: Sequence[Site]) -> Space:
        """The genes and the group sizes that they may have."""

    @abstractmethod
    def allocate(self, bench: Bench) -> Allocation:
        """Choose a group size for each gene."""

    def problems(self, recipe: Recipe, sites: Sequence[Site]) -> list[str]:
        """See `Search`."""
        space = self.space(recipe, sites)
        return space.problems() or self.budget.problems(space)

    def plan(self, recipe: Recipe, sites: Sequence[Site]) -> Policy:
        """The cheapest legal policy."""
        space = self.space(recipe, sites)
        return space.policy(self.budget.table(space).cheapest)

    def summary(self, recipe: Recipe, sites: Sequence[Site]) -> str:
        """See `Search`."""
        space = self.space(recipe, sites)
        sizes = sorted({size for gene in space.genes for size in gene.sizes})
        limit = self.budget.text(space, self.budget.table(space).limit)
        return (
            f"the group sizes of {len(space.genes)} inputs and their weights are chosen among "
            f"{', '.join(map(str, sizes))} with a budget of {limit}; shown is the cheapest choice"
        )

    def quantize(
        self,
        model: DiffusionModel,
        recipe: Recipe,
        collect: Callable[[], CalibrationData],
        folder: Place | None,
        setting: Setting,
    ) -> Quantized:
        """See `Search`."""
        space = self.space(recipe, model.sites())
        table = self.budget.table(space)
        bench = Bench(model, recipe, space, table, cache(collect), setting, folder)
        allocation = self.allocate(bench)
        spent = self.budget.text(space, table.spent(allocation.choice))
        log.info("search: %s", spent)
        details = {
            "budget": self.budget.text(space, table.limit),
            "spent": spent,
            **allocation.details,
            "groups": [g.place | {"group_size": s} for g, s in zip(space.genes, allocation.choice, strict=True)],
        }
        quantized = bench.variants.assembled(space, allocation.choice)
        return replace(quantized, allocation=replace(allocation, details=details))
