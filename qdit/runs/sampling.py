"""The sample set of a run: by its quantized model, which is fitted when samples are missing, or in full precision."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from qdit.engine.openvino import OpenVINO
from qdit.eval.extractor import loading
from qdit.eval.samples import SampleSet
from qdit.execution import stamp, way
from qdit.model.base import DiffusionModel
from qdit.nn.compiled import Calls, Compiled, calling
from qdit.quantized import Quantized
from qdit.runs.setup import Setup
from qdit.storage.progress import StepBar
from qdit.storage.shelf import Shelf
from qdit.tracking import Tracker


@dataclass
class Maker:
    """Makes the latents of a run's samples.

    Args:
        parts: the model, the sampler and the conditions.
        seed: of all noise and of the conditions.
        bar: moves with each step.
        fit: gives the quantized model; None samples in full precision.
        compiles: whether the quantized network is one graph.
    """

    parts: Setup
    seed: int
    bar: StepBar
    fit: Callable[[], Quantized] | None
    compiles: bool

    def __call__(self, indices: list[int]) -> Tensor:
        """The final latents of these samples, [B, C, h, w]."""
        model, sampler = self.parts.model, self.parts.sampler
        labels = self.parts.dataset.labels(indices, self.seed)
        watch = self.bar.stepping(indices, sampler.steps)
        if self.fit is None:
            return sampler.sample(model, indices, labels, self.seed, callback=watch)
        quantized = self.fit()
        with quantized.installed(model), ExitStack() as stack:
            for graph in self.graphs:
                stack.enter_context(calling(graph))
            return sampler.sample(model, indices, labels, self.seed, callback=watch, hook=quantized.correction)

    @cached_property
    def graphs(self) -> list[Calls]:
        """Graphs of the networks that are sampled from; none where they are called as they are."""
        kind = graph_of(self.compiles)
        return [kind(each) for each in called(self.parts.model)] if kind and self.fit else []

    @property
    def compiling(self) -> float:
        """Seconds in which the networks were compiled."""
        return sum((graph.seconds for graph in self.graphs), 0.0)

    @property
    def ran(self) -> dict[str, int]:
        """Quantized layers, by how an engine multiplied them."""
        return dict(sum((Counter(graph.layers) for graph in self.graphs if isinstance(graph, OpenVINO)), Counter()))


def sample_set(
    config: dict[str, Any], parts: Setup, shelf: Shelf, fit: Callable[[], Quantized] | None, tracker: Tracker
) -> SampleSet:
    """The samples of a run: by the model that `fit` gives when samples are missing, or in full precision."""
    n, seed, dataset, model = config["num_samples"], config["seed"], parts.dataset, parts.model
    compiles = fit is not None and config.get("compile", False)
    if fit is not None:
        shelf = replace(shelf, made=stamp(model.device, compiled=compiles, sampled=True))
    bar = StepBar(f"{config['name']}: sampling", n)
    make = Maker(parts, seed, bar, fit, compiles)

    def progress(done: int) -> None:
        samples.compiling, samples.ran = make.compiling, make.ran
        bar.reach(done)
        tracker.log({"samples": done}, done, "sampling")

    asked = dataset.asked(dataset.labels(list(range(n)), seed).tolist())
    samples = SampleSet(
        shelf,
        n,
        config["batch_size"],
        make,
        model.decode,
        loading(parts.prepared.extractors, model.device),
        progress,
        prompts=asked["prompts"] or (),
        clusters=asked["clusters"],
        framewise=model.framewise,
        frames_per_second=model.frames_per_second,
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
