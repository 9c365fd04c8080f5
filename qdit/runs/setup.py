"""Everything a run needs, built and checked before the first computation: `assemble` turns a config into `Setup`."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdit.checkpoint.checkpoint import transform_of, verify
from qdit.checkpoint.manifest import Manifest
from qdit.dataset.base import Source
from qdit.dataset.prompts import Prompts, unshown
from qdit.errors import UserError, from_problems
from qdit.eval.base import Metric
from qdit.eval.preflight import Prepared
from qdit.ledger import Ledger, RunTime, ledger
from qdit.method import Method
from qdit.model.base import DiffusionModel, Site
from qdit.model.text import TextModel
from qdit.policies import Policy
from qdit.runs.checks import engine_problems, too_many_groups, unfit
from qdit.runs.parts import Plan, gather, plan
from qdit.sampler.sampler import Sampler
from qdit.setting import Setting
from qdit.storage.shelf import Place
from qdit.tracking import Tracker

log = logging.getLogger("qdit")


@dataclass(frozen=True)
class Setup:
    """The objects of one run; `recipe` is None for full precision and for a model that is loaded."""

    model: DiffusionModel
    model_protocol: str
    dataset: Source
    sampler: Sampler
    recipe: Method | None
    metrics: dict[str, Metric]
    prepared: Prepared
    objective: Prepared
    """Extractors and references of a search's objective."""
    loaded: Manifest | None = None
    """The checkpoint of `quantizer=load`."""
    external: DiffusionModel | None = None
    """What others quantized, where that is judged; `model` is the same in full precision."""

    def policy(self) -> Policy:
        """What is quantized, and how; with a search, a policy that it might find."""
        if self.loaded is not None:
            return Policy.of(self.loaded.content["policy"])
        if self.recipe is None:
            return Policy()
        return self.recipe.completed(self.recipe.plan(self.model.sites()), self.model)

    def run_time(self) -> list[RunTime]:
        """What a transform leaves to be done to inputs at run time."""
        if self.loaded is None:
            return self.recipe.run_time(self.model) if self.recipe is not None else []
        if (found := transform_of(self.loaded)) is None:
            return []
        transform, names = found
        return transform.run_time(self.model, [site for site in self.model.sites() if site.name in set(names)])

    def costs(self, policy: Policy) -> Ledger:
        """The network's ledger under a policy, with what a transform leaves to be done to inputs."""
        model, left = self.model, self.run_time() if policy else []
        turns = len(model.turns()) or 1
        return ledger(model.denoiser, model.sites(), policy, model.attentions(), left, turns)

    def why_not(self, site: Site) -> str | None:
        """Why a site stays in full precision; None if it is quantized."""
        if self.loaded is not None:
            return None if site.name in self.loaded.content["policy"] else "the checkpoint does not have it"
        return self.recipe.scope.why_not(site) if self.recipe else "full precision"

    def setting(self, seed: int, folder: Place, tracker: Tracker) -> Setting:
        """The run around a search: its seed, the folder of its ledger, and what it reports to."""
        return Setting(
            sampler=self.sampler,
            dataset=self.dataset,
            seed=seed,
            prepared=self.objective,
            folder=folder,
            tracker=tracker,
        )


def missing_here(config: dict[str, Any], parts: Setup) -> str:
    """What a run of a dry config would be refused for on this machine; empty if nothing: the plan is of any machine."""
    try:
        gather(config, parts.dataset, parts.metrics, parts.recipe)
    except UserError as error:
        return "a run would be refused on this machine, until this is mended:\n" + "\n".join(
            f"  {line}" for line in error.lines()
        )
    return ""


def load_model(made: Plan, config: dict[str, Any]) -> DiffusionModel:
    """Load a model; one that reads prompts has them encoded first, and its encoder is freed before.

    A dry run looks at the configs alone.

    Raises:
        UserError: the data set has no prompts for it, or classes where it has none; or see the adapter's `load`.
    """
    dtype, loader = getattr(torch, config["dtype"]), made.loader
    look = config["dry"] and made.loaded is None and hasattr(loader, "outline")  # a checkpoint is compared with weights
    texts = made.dataset.texts if isinstance(made.dataset, Prompts) else None
    if not isinstance(loader, TextModel):
        if texts is not None:
            raise UserError(
                f"model={loader.name} is conditioned on classes, and dataset={made.dataset.name} has prompts"
            )
        return loader.outline(made.device, dtype) if look else loader.load(made.device, dtype)
    if texts is None:
        raise UserError(
            f"model={loader.name} reads prompts, and dataset={made.dataset.name} has classes; use dataset=prompts"
        )
    if look:
        return loader.outline(made.device, dtype)
    table = None if config["dry"] else loader.encode(texts, Path(config["cache_dir"]), made.device)
    return loader.load(made.device, dtype, table)


def assemble(config: dict[str, Any]) -> Setup:
    """Build every part of a resolved config and check them against each other; nothing is computed yet.

    Raises:
        UserError: with all problems that were found at the first stage that found any.
    """
    if "against" in config["model"]:
        raise UserError("model=pipeline has its own two pipelines (qdit.runs.external); nothing else is made of them")
    made = plan(config)
    dataset, sampler, recipe, loaded, loader = made.dataset, made.sampler, made.recipe, made.loaded, made.loader
    search = recipe.search if recipe else None
    model = load_model(made, config)
    sampler.inform(model)
    if loaded is not None:
        verify(loaded, model)
        if (made_of := loaded.content["provenance"].get("made_of")) != loader.protocol():
            log.warning("the checkpoint was saved of %s, and this run has %s", made_of, loader.protocol())
    problems = sampler.check(model) + dataset.check(model) + unshown(dataset, sampler.hides_null(model))
    measures = {f"eval={name}": metric for name, metric in made.metrics.items()}
    if search is not None and search.measured is not None:
        measures["search.objective"] = search.measured.metric
    problems += unfit(measures, config, model)
    if recipe is not None:
        problems += recipe.problems(model.sites()) + recipe.unfit(model)
        problems += recipe.correction.problems(model) if recipe.correction is not None else []
        problems += engine_problems(config, recipe, model) + too_many_groups(recipe, sampler, model)
    if problems:
        raise from_problems(problems, "this run")
    about = made.metrics, made.prepared, made.objective, loaded
    return Setup(model, loader.protocol(), dataset, sampler, recipe, *about)
