"""Everything a run needs, built and checked before the first computation: `assemble` turns a config into `Setup`."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdit.checkpoint.checkpoint import transform_of, verify
from qdit.checkpoint.manifest import Manifest, is_loaded
from qdit.config import build, check
from qdit.dataset.base import Source
from qdit.dataset.prompts import Prompts, unshown
from qdit.errors import UserError, from_problems
from qdit.eval.base import Metric
from qdit.eval.preflight import Prepared, prepare
from qdit.keys import COMPONENTS, RECIPE_KEYS
from qdit.ledger import Ledger, RunTime, ledger
from qdit.method import Method
from qdit.model.base import DiffusionModel, Site
from qdit.model.text import TextModel
from qdit.policies import Policy
from qdit.quant import named
from qdit.runs.checks import engine_problems, too_many_groups, unfit
from qdit.runs.identity import is_external, is_full_precision
from qdit.sampler.sampler import Sampler
from qdit.scheme import in_formats
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


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is the first accelerator, else the CPU.

    Raises:
        UserError: no such device here.
    """
    available = ["cpu"]
    available += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    available += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device(available[1] if len(available) > 1 else "cpu")
    if (f"{name}:0" if name == "cuda" else name) not in available:
        raise UserError(f"device={name} is not here; this machine has {', '.join(available)} (device=auto picks one)")
    return torch.device(name)


def build_recipe(config: dict[str, Any]) -> Method | None:
    """The recipe of a config, None for full precision.

    Raises:
        UserError: with every part that refuses its values.
    """
    if is_full_precision(config) or is_loaded(config) or is_external(config):
        return None
    parts: dict[str, Any] = {}
    problems: list[str] = []
    for key in COMPONENTS:
        try:
            parts[key] = (
                build(config[key]) if "_target_" in config.get(key, {}) else None
            )  # none: an option that is no part
        except UserError as error:
            problems += [f"{key}: {p}" for p in error.problems]
    bits = config["bits"]
    try:
        parts = in_formats(parts, bits)
    except UserError as error:
        problems += error.problems
    if problems:
        raise from_problems(problems, "this recipe")
    widths = {"weight_bits": bits["weight"], "activation_bits": bits["activation"]}
    names = {key: bits.get(key) for key in named.KEYS}
    recipe = Method(**parts, **widths, **names)
    if problems := recipe.misfit_grids():
        raise from_problems(problems, "this recipe")
    return recipe


@dataclass(frozen=True)
class Plan:
    """What a config describes, checked as far as that goes without its model."""

    device: torch.device
    dataset: Source
    sampler: Sampler
    recipe: Method | None
    loaded: Manifest | None
    metrics: dict[str, Metric]
    prepared: Prepared
    objective: Prepared
    loader: Any


def plan(config: dict[str, Any]) -> Plan:
    """Build every part of a resolved config but the model; no weights are read.

    Raises:
        UserError: with all problems that were found at the first stage that found any.
    """
    # Of a recipe that was saved only the bits matter, for the tables.
    left = RECIPE_KEYS if is_external(config) else () if not is_loaded(config) else set(RECIPE_KEYS) - {"bits"}
    check({k: v for k, v in config.items() if k not in left})
    loaded = Manifest.read(config["quantizer"]["path"]) if is_loaded(config) else None
    device = pick_device(config["device"])
    recipe = build_recipe(config)
    metrics = {name: build(node) for name, node in (config.get("eval") or {}).items()}
    dataset = build_dataset(config, metrics)
    sampler: Sampler = build(config["sampler"])
    loader = build(config["model"])
    prepared = objective = Prepared({}, {})
    if not config["dry"]:
        prepared, objective = gather(config, dataset, metrics, recipe)
    return Plan(device, dataset, sampler, recipe, loaded, metrics, prepared, objective, loader)


def gather(
    config: dict[str, Any], dataset: Source, metrics: dict[str, Metric], recipe: Method | None
) -> tuple[Prepared, Prepared]:
    """Weights and references of a run's metrics, and of its search's objective.

    Raises:
        UserError: something is missing or does not fit.
    """
    cache_dir = Path(config["cache_dir"])
    about = {"dataset": dataset.reference, "cache_dir": cache_dir, "image_size": dataset.image_size}
    texts = dataset.captions_of(config["num_samples"], config["seed"])
    prepared = prepare(metrics, n=config["num_samples"], prompts=texts, suite=dataset.suite, **about)
    if recipe is None or recipe.search is None:
        return prepared, Prepared({}, {})
    return prepared, recipe.search.preflight(dataset, cache_dir, config["seed"])


def missing_here(config: dict[str, Any], parts: Setup) -> str:
    """What a run of a dry config would be refused for on this machine; empty if nothing: the plan is of any machine."""
    try:
        gather(config, parts.dataset, parts.metrics, parts.recipe)
    except UserError as error:
        return "a run would be refused on this machine, until this is mended:\n" + "\n".join(
            f"  {line}" for line in error.lines()
        )
    return ""


def build_dataset(config: dict[str, Any], metrics: dict[str, Metric]) -> Source:
    """The data set of a config.

    Raises:
        UserError: it lacks its file, or is otherwise wrong; with what the metrics lack besides, so that all that must
            be fetched is in one message.
    """
    node = config["dataset"]
    try:
        return build(node)
    except UserError as error:
        about = {"dataset": node.get("reference", ""), "image_size": node.get("image_size"), "suite": node.get("name")}
        judging = {name: metric for name, metric in metrics.items() if metric.suite in (None, node.get("name"))}
        try:
            prepare(judging, n=config["num_samples"], cache_dir=Path(config["cache_dir"]), **about)
        except UserError as more:
            raise UserError(f"dataset: {error}", str(more)) from error
        raise


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
