"""What of a run does not go together, as sentences: metrics, the engine and time groups against model and sampler."""

from math import inf
from typing import Any

import torch

from qdit.engine import misfits
from qdit.eval.base import Metric
from qdit.execution import lacks_openvino
from qdit.exports.forms import forms_of
from qdit.method import Method
from qdit.model.base import DiffusionModel
from qdit.sampler.sampler import Sampler


def too_many_groups(recipe: Method, sampler: Sampler, model: DiffusionModel) -> list[str]:
    """Networks that have fewer steps of the sampler than inputs have groups of timesteps, one sentence each."""
    if (time := getattr(recipe.activation, "time", None)) is None or time.groups == 1:
        return []
    told = torch.tensor(sampler.timesteps(model))
    counts = {turn.name: int(turn.takes(told).sum()) for turn in model.turns()} or {None: len(told)}
    return [problem for name, steps in counts.items() if (problem := time.too_many(steps, name)) is not None]


def engine_problems(config: dict[str, Any], recipe: Method, model: DiffusionModel) -> list[str]:
    """Why the engine of a config cannot run a recipe, before it is fitted; a dry run may be of another machine."""
    if config["execution"] == "int8" and recipe.search is None and not _has_integers(recipe, model):
        return [
            f"execution=int8 multiplies weights and inputs that are both integers of up to 8 bits, and no layer of "
            f"{config['bits']['name']} with this recipe has both; use bits=w4a8, or execution=auto"
        ]
    if config["execution"] != "openvino":
        return []
    lack = None if config["dry"] else lacks_openvino(model.device)
    found = lack or misfits.problem(forms_of(recipe, model))
    return [found] if found else []


def _has_integers(recipe: Method, model: DiffusionModel) -> bool:
    """Whether some layer's weight and inputs are both integers that an int8 product takes."""
    pairs = ((form.weight, form.inputs) for form in forms_of(recipe, model).values())
    return any(all(spec is not None and spec.is_integer and spec.bits <= 8 for spec in pair) for pair in pairs)


def _frames(config: dict[str, Any], model: DiffusionModel) -> float:
    """How many frames a model's clips have; unlimited where that is not known, or it makes images."""
    shape = getattr(model, "latent_shape", ())
    if model.modality != "video":
        return inf
    return config["model"].get("frames") or (shape[1] if len(shape) == 4 else inf)


def unfit(measures: dict[str, Metric], config: dict[str, Any], model: DiffusionModel) -> list[str]:
    """Metrics that are not of what a model makes, one sentence each."""
    fast = model.frames_per_second if model.modality == "video" else 0
    found = [
        f"{name} keeps all frames, as VBench does of up to {m.fastest} a second; {config['model']['name']} makes "
        f"{fast}: leave it out, or have VBench's own code judge (eval=vbench_quality7)"
        for name, m in measures.items()
        if m.fastest is not None and fast > m.fastest
    ]
    found += [f"{name}: {problem}" for name, m in measures.items() for problem in m.short(_frames(config, model))]
    return found + [
        f"{name} needs a model that makes {' or '.join(m.modalities)}s; "
        f"{config['model']['name']} makes {model.modality}s"
        for name, m in measures.items()
        if model.modality not in m.modalities
    ]
