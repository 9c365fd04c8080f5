"""The stages that `qdit.runs.run.execute` composes: calibration data, the fit, sample sets, diagnosis."""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdit.calibration import CalibrationData
from qdit.checkpoint import checkpoint
from qdit.checkpoint.manifest import FOLDER, is_loaded
from qdit.dataset.prompts import Prompts
from qdit.engine.openvino import OpenVINO
from qdit.eval.samples import SampleSet
from qdit.execution import stamp, way
from qdit.keys import RECIPE_KEYS
from qdit.method import quantize
from qdit.model.base import DiffusionModel
from qdit.nn.compiled import Calls, Compiled, calling
from qdit.plots import run as figures
from qdit.quantized import Quantized
from qdit.rounding.resume import FORMAT
from qdit.runs.diagnose import Trajectory, layer_report, timestep_curve, trajectory
from qdit.runs.identity import SCIENCE, weights, written
from qdit.runs.setup import Setup
from qdit.runs.versions import versioned, versions, without_neutral
from qdit.storage.digest import digest
from qdit.storage.locks import exclusive
from qdit.storage.progress import progress
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


class Bar:
    """A progress bar over samples, with rate and time left, that also moves between denoising steps."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self.bar: Any = None  # a tqdm

    def stepping(self, indices: list[int], steps: int) -> Callable[..., None]:
        """A sampler callback that moves the bar by one step of a batch."""
        if self.bar is None:
            shape = "{desc} {percentage:3.0f}%|{bar:24}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
            about: dict[str, Any] = {"desc": self.label, "unit": "image", "bar_format": shape}
            self.bar = progress(total=self.total, initial=indices[0], **about)  # a resumed run's rate is its own
        bar, batch = self.bar, len(indices)

        def step(*_: object) -> None:
            bar.update(min(batch / steps, bar.total - bar.n))  # sums of shares may go beyond

        return step

    def reach(self, done: int) -> None:
        """Note how many samples exist; close at the end."""
        if self.bar is not None:
            self.bar.n = done
            self.bar.refresh()
            if done >= self.total:
                self.bar.close()
                self.bar = None


def sample_set(
    config: dict[str, Any], parts: Setup, shelf: Shelf, fit: Callable[[], Quantized] | None, tracker: Tracker
) -> SampleSet:
    """The samples of a run: by the model that `fit` gives when samples are missing, or in full precision."""
    label = f"{config['name']}: sampling"
    bar, steps = Bar(label, config["num_samples"]), parts.sampler.steps
    compiles = fit is not None and config.get("compile", False)
    if fit is not None:
        shelf = replace(shelf, made=stamp(parts.model.device, compiled=compiles, sampled=True))
    graphs = cache(lambda: [graph(each) for each in called(parts.model)] if (graph := graph_of(compiles)) else [])

    def generate(indices: list[int]) -> Tensor:
        labels = parts.dataset.labels(indices, config["seed"])
        watch = bar.stepping(indices, steps)
        if fit is None:
            return parts.sampler.sample(parts.model, indices, labels, config["seed"], callback=watch)
        quantized = fit()
        with quantized.installed(parts.model), ExitStack() as stack:
            for graph in graphs():
                stack.enter_context(calling(graph))
            made = parts.sampler.sample(
                parts.model, indices, labels, config["seed"], callback=watch, hook=quantized.correction
            )
        samples.compiling = sum((graph.seconds for graph in graphs()), 0.0)
        samples.ran = dict(sum((Counter(graph.layers) for graph in graphs() if isinstance(graph, OpenVINO)), Counter()))
        return made

    def extract(name: str) -> Callable[[Tensor], dict[str, Tensor]]:
        extractor = parts.prepared.extractors[name]
        extractor.load(str(parts.model.device))
        return extractor

    def progress(done: int) -> None:
        bar.reach(done)
        tracker.log({"samples": done}, done, "sampling")

    n, dataset = config["num_samples"], parts.dataset
    numbers = dataset.labels(list(range(n)), config["seed"]).tolist()
    ids = dataset.ids() if isinstance(dataset, Prompts) else None
    samples = SampleSet(
        shelf,
        n,
        config["batch_size"],
        generate,
        parts.model.decode,
        extract,
        progress,
        prompts=dataset.captions_of(n, config["seed"]),
        clusters=[ids[number] for number in numbers] if ids else None,
        framewise=parts.model.framewise,
        frames_per_second=parts.model.frames_per_second,
        weights=lambda name: parts.prepared.extractors[name].identity,
    )
    return samples


def graph_of(compiles: bool) -> Callable[[nn.Module], Calls] | None:
    """What makes graphs of the networks that are sampled from; None where they are called as they are."""
    if way().engine:
        return OpenVINO
    return Compiled if compiles else None


def called(model: DiffusionModel) -> list[nn.Module]:
    """The networks that a model calls: one, or those that take turns."""
    return [model.denoiser.get_submodule(turn.name) for turn in model.turns()] or [model.denoiser]


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
