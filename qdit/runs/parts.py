"""The parts of a run that a config describes, built and checked without its model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdit.checkpoint.manifest import Manifest, is_loaded
from qdit.config import build, check
from qdit.dataset.base import Source
from qdit.errors import UserError, from_problems
from qdit.eval.base import Metric
from qdit.eval.preflight import Prepared, prepare
from qdit.keys import COMPONENTS, RECIPE_KEYS
from qdit.method import Method
from qdit.quant import named
from qdit.runs.identity import is_external, is_full_precision
from qdit.sampler.sampler import Sampler
from qdit.scheme import in_formats


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
