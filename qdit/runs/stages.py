"""The stages that `qdit.runs.run.execute` composes: calibration data, the fit, its checkpoint, diagnosis."""

import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.checkpoint import checkpoint
from qdit.checkpoint.manifest import FOLDER, is_loaded
from qdit.execution import stamp
from qdit.keys import RECIPE_KEYS
from qdit.method import quantize
from qdit.plots import run as figures
from qdit.quantized import Quantized
from qdit.rounding.resume import FORMAT
from qdit.runs.diagnose import Trajectory, layer_report, timestep_curve, trajectory
from qdit.runs.identity import SCIENCE, weights, written
from qdit.runs.setup import Setup
from qdit.runs.versions import versioned, versions, without_neutral
from qdit.storage.digest import digest
from qdit.storage.locks import exclusive
from qdit.storage.shelf import Shelf
from qdit.tracking import Tracker

log = logging.getLogger("qdit")
DIAGNOSED, DIAGNOSED_CLIPS = 8, 4  # trajectories behind the charts of layers and timesteps
DIAGNOSIS = ("checkpoint", "curves", "layers", "search")  # what a fit and its diagnosis leave in the record


def path_id(config: dict[str, Any]) -> str:
    """A digest of `path_identity`."""
    return digest(path_identity(config))


def path_identity(config: dict[str, Any]) -> dict[str, Any]:
    """What a full-precision trajectory depends on; the number of trajectories and their batches are not part of it."""
    known = {key: config[key] for key in ("model", "sampler", "seed", "dtype")}
    known["dataset"] = {k: v for k, v in config["dataset"].items() if k != "reference"}  # it is for metrics
    known = without_neutral(known)
    known["dataset"] |= written(config["dataset"])
    return {"version": SCIENCE, "weights": weights(config), **known}


def shared(config: dict[str, Any], parts: Setup, folder: str, identity: Any, execution: bool = False) -> Shelf:
    """A folder of the cache, whose files other machines do not replace; `execution`: quantized layers made them."""
    made = stamp(parts.model.device, execution)
    return Shelf(Path(config["cache_dir"]) / folder, identity, made, shared=True)


def calibrate(config: dict[str, Any], parts: Setup, tracker: Tracker) -> CalibrationData:
    """The calibration data of a config, from the stage cache if any run made it before."""
    assert parts.recipe is not None
    source = parts.recipe.calibration
    about = without_neutral({"calibration": config["calibration"]})
    about |= {"versions": found} if (found := versions(config, calibrating=True)) else {}
    key = digest(about | {"path": path_id(config)})

    def make() -> dict[str, Tensor]:
        log.info("calibrating: %d points", source.num_samples)
        data = source.collect(parts.model, parts.sampler, parts.dataset, config["seed"])
        kept = {"x": data.x, "t": data.t, "y": data.y, "origin": data.origin}
        return {key: tensor for key, tensor in kept.items() if tensor is not None}

    shelf = shared(config, parts, "calibration", about | {"path": path_identity(config)})
    stored = shelf.once(key, make)
    told = parts.sampler.timesteps(parts.model)
    for number, time in enumerate(told):
        tracker.log(partial(_points, stored["x"][stored["t"] == time]), number, "calibration")
    return CalibrationData(stored["x"], stored["t"], stored["y"], source.batch_size, stored.get("origin"), told)


def _points(x: Tensor) -> dict[str, float]:
    """How many calibration points a timestep has, and how their values are spread."""
    if not len(x):
        return {"points": 0}
    size = x.float().abs()
    return {"points": len(x), "absmax": size.max().item(), "deviation": x.float().std(correction=0).item()}


def rounding_folder(config: dict[str, Any]) -> Path:
    """Where rounded weights are kept: shared by all runs that round alike, whatever they do before and behind it."""
    return Path(config["cache_dir"]) / "rounding" / digest(_rounding(config) | {"path": path_id(config)})


def _rounding(config: dict[str, Any]) -> dict[str, Any]:
    """What rounded weights depend on, besides the path."""
    behind = ("search", "repair", "correction")
    recipe = versioned({k: config[k] for k in RECIPE_KEYS if k in config and k not in behind}, config)
    return {"format": FORMAT, "recipe": recipe}


def fit(config: dict[str, Any], parts: Setup, folder: Shelf, tracker: Tracker) -> Quantized:
    """The quantized model of a config; the ledger of a search is in `folder`."""
    if parts.loaded is not None:
        return checkpoint.load(parts.loaded.folder, parts.model)
    assert parts.recipe is not None
    identity = _rounding(config) | {"path": path_identity(config)}
    place = shared(config, parts, f"rounding/{rounding_folder(config).name}", identity, execution=True)
    setting = parts.setting(config["seed"], folder, tracker)
    # Runs that round alike do it once. Those that search, too, share fits, but not hours of scoring.
    with exclusive(place.folder / ".lock") if parts.recipe.search is None else nullcontext():
        return quantize(parts.model, parts.recipe, lambda: calibrate(config, parts, tracker), place, setting)


def save(
    config: dict[str, Any], parts: Setup, quantized: Quantized, folder: Path, run_id: str
) -> dict[str, dict[str, Any] | None]:
    """Save the quantized model in `folder`, if that is wanted and it was not itself loaded; as a record entry."""
    if is_loaded(config):
        return {}
    if not config["save_checkpoint"]:
        return {"checkpoint": None}
    about = checkpoint.provenance(parts.model, config=config, run_id=run_id, made_of=parts.model_protocol)
    saved = checkpoint.save(quantized, folder / FOLDER, about)
    log.info("  checkpoint: %s (%.2f MB)", saved.folder, saved.bytes() / 1e6)
    return {"checkpoint": {"bytes": saved.bytes(), "digest": saved.identity}}


def diagnosed_path(config: dict[str, Any], parts: Setup) -> Trajectory:
    """The full-precision trajectories behind the charts, from the stage cache if any run made them before."""

    count = DIAGNOSED if len(parts.model.latent_shape) == 3 else DIAGNOSED_CLIPS

    def make() -> dict[str, Tensor]:
        made = trajectory(parts.model, parts.sampler, parts.dataset, config["seed"], count)
        return vars(made) | {"timesteps": torch.tensor(made.timesteps)}

    shelf = shared(config, parts, "trajectory", {"trajectories": count, "path": path_identity(config)})
    stored = shelf.once(f"{path_id(config)}-{count}", make)
    timesteps = stored.pop("timesteps").tolist()
    return Trajectory(**stored, timesteps=timesteps)


def diagnose(config: dict[str, Any], parts: Setup, quantized: Quantized, folder: Path) -> dict[str, Any]:
    """Per-layer and per-timestep SQNR and what a search found, as record entries and as charts in `folder`."""
    path = diagnosed_path(config, parts)
    curve = timestep_curve(parts.model, parts.sampler, quantized, path)
    layers = layer_report(parts.model, quantized, path)
    figures.timestep_chart({config["name"]: curve}, folder / "timesteps.png")
    figures.layer_chart(layers, folder / "layers.png", title=config["name"])
    found = {"curves": {"sqnr_per_timestep": curve}, "layers": layers}
    if (allocation := quantized.allocation) is not None:
        found["curves"] |= allocation.curves
        found["search"] = allocation.details
        for key, draw in (("groups", figures.group_map), ("bits", figures.bit_map)):
            if key in allocation.details:
                draw(allocation.details[key], folder / f"{key}.png", title=config["name"])
    return found


def protocol(config: dict[str, Any], parts: Setup) -> str:
    """Everything that a number depends on besides the recipe, in one readable line."""
    return "|".join(
        [
            parts.model_protocol,
            f"weights={weights(config)}",
            parts.dataset.protocol(),
            parts.sampler.protocol(parts.model),
            f"N={config['num_samples']}",
            f"seed={config['seed']}",
            f"bs={config['batch_size']}",
            config["dtype"],
        ]
    )
