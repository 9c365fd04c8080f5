"""The reconstruction of one fit, resumable: each unit is read from disk if it was finished, or learns and is saved.

A unit's file holds codes, scales and zero points of its weights (`qdit.rounding.resume`) and its activation step sizes,
as `<path>.step`. It is written whole or not at all, and nothing else decides how the next unit learns: inputs and
targets are computed again from what was saved, and each unit shuffles with a random stream of its own. A fit that was
killed and is started again ends with the bytes of an undisturbed one.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import chain
from math import isfinite

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qdit.calibration.blocks import Segment, segments
from qdit.errors import UserError
from qdit.execution import repeatable
from qdit.fit import Fit
from qdit.model.base import Site
from qdit.nn.linear import QuantLinear
from qdit.nn.quantizers import StaticQuantizer
from qdit.nn.replace import replaced
from qdit.quant.grid import Rounded
from qdit.rounding.reconstruction.fisher import importances
from qdit.rounding.reconstruction.loop import Learner, Learning, error, reconstruct
from qdit.rounding.reconstruction.soft import LearnedWeight, SoftWeight
from qdit.rounding.reconstruction.ste import Dropped, LearnedStep, dropping, fixed, learnable, quantizers
from qdit.rounding.reconstruction.targets import Targets
from qdit.rounding.reconstruction.temporal import temporal, temporal_task
from qdit.rounding.reconstruction.units import Unit, list_units
from qdit.rounding.resume import load_named, save_named
from qdit.seeding import generator, key
from qdit.storage.progress import progress

log = logging.getLogger("qdit")


class Session:
    """A reconstruction in progress.

    Args:
        fit: what is fitted; its static quantizers get the step sizes that were learned.
        how: the hyperparameters.
        lagging: whether units learn from full-precision inputs: the second walk through the network, which gives the
            inputs, then stays in full precision, too, one segment behind the first, which gives the targets.
        fisher: whether errors are weighted by the output's Fisher information.
    """

    name = "adaround"
    """What messages call it."""

    def __init__(self, fit: Fit, how: Learning, *, lagging: bool, fisher: bool) -> None:
        self.fit, self.how, self.lagging, self.fisher = fit, how, lagging, fisher
        self.parts = segments(fit.model.sites(), fit.policy)
        chosen = [site for part in self.parts for site in part.sites] if how.units == "temporal" else []
        self.units = list_units(self.parts, self.alike, temporal(chosen))
        self.weights: dict[str, Rounded] = {}
        self.done: set[str] = set()
        branches = [b for layer in fit.rewrite.layers.values() if (b := getattr(layer, "branch", None)) is not None]
        self.exact = {part for module in (*fit.rewrite.inputs.values(), *branches) for part in module.modules()}
        self.seed: int = fit.seed
        self.static_count = self.fixed_count = 0  # quantizers of the units that learned

    def run(self) -> dict[str, Rounded]:
        """The rounded weights of all units."""
        missing = {unit.name for group in self.units for unit in group if not self.restore(unit)}
        total = sum(self.schedule(unit).iterations for group in self.units for unit in group if unit.name in missing)
        targets = Targets(self.fit.model, self.fit.data, self.parts, self.fit.scratch()) if missing else None
        with progress(total=total, desc="reconstructing", unit="step", hidden=not missing) as bar:
            for part, group in zip(self.parts, self.units, strict=True):
                for unit in group:
                    if unit.name in missing:
                        assert targets is not None
                        self.learn(unit, targets, bar)
                        missing.remove(unit.name)
                if not missing or targets is None:
                    break
                targets.advance(part, self.passed(part))
        if self.fixed_count:
            log.warning(
                "%s: %d of %d static quantizers of inputs and operands stay as calibrated, for they have several "
                "numbers each (groups of timesteps, heads, regions, levels, channels); rounding.step_rate does nothing "
                "to them",
                *(self.name, self.fixed_count, self.fixed_count + self.static_count),
            )
        return self.weights

    def learn(self, unit: Unit, targets: Targets, bar: tqdm) -> None:
        """Reconstruct a unit, save it and keep it."""
        layers, passed = self.layers(unit), self.passed(unit.segment)
        inner = targets.inner(unit, self.rounding(unit)) if self.how.inner else {}
        shares = {name: share for name in inner if (share := self.share(name)) is not None}
        made = temporal_task(self.fit.model, self.fit.data) if unit.temporal else targets.task(unit, passed)
        task, importance = replace(made, inner=inner, shares=shares), self.weighting(unit)
        found = [module for _, module in quantizers(layers, self.exact)]
        self.fixed_count += sum(map(fixed, found))
        self.static_count += sum(isinstance(module, StaticQuantizer) for module in found)
        learning = self.learning(layers)
        learner = self.learner(unit, layers, learning)
        nearest = learner.result()
        random = generator(self.seed, f"reconstruction {unit.name}", 0)
        installed = self.dropped(unit, learning) if self.how.drop else learning
        copies = {twin: layers[original] for twin, original in unit.twins.items()}
        with targets.installed({**passed, **layers, **copies}), replaced(self.fit.model.denoiser, installed):
            learner.harden()
            before = error(task, self.how.batch_size, importance)
            if not isfinite(before):
                raise UserError(f"{self.name}: the outputs of {unit.name} are not finite; try dtype=float32")
            with frozen(self.fit.model.denoiser), repeatable(self.fit.model.device), dropping(installed.values()):
                reconstruct(task, learner, self.schedule(unit), random, importance, bar.update)
            learner.harden()
            after = error(task, self.how.batch_size, importance)
        log.debug("%s: error %.4g, nearest %.4g", unit.name, after, before)
        self.report(unit, before, after, nearest[0], learner)
        better = after <= before
        if not better:
            log.warning(
                "%s: %s stays at nearest, whose error is %.4g, not %.4g; more rounding.iterations, or a larger "
                "rounding.rate, may help",
                *(self.name, unit.name, before, after),
            )
        result = learner.result() if better else nearest
        self.save(unit, *result)
        self.keep(unit, *result)

    def report(self, unit: Unit, before: float, after: float, nearest: Mapping[str, Rounded], learner: Learner) -> None:
        """Tell the tracker what a unit's output is wrong by, to nearest and learned, and how many codes moved."""

        def values() -> dict[str, float]:
            learned = learner.result()[0]
            moved = [(learned[name].codes != weight.codes).float().flatten() for name, weight in nearest.items()]
            share = {"moved_codes": torch.cat(moved).mean().item()} if moved else {}
            return {"error": after, "error_nearest": before, **share}

        self.fit.tracker.log(values, [each.name for group in self.units for each in group].index(unit.name), "rounding")

    def learning(self, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """What takes the place of the quantizers of installed layers while these learn, by path."""
        return learnable(layers, self.exact, relative=self.how.step_unit == "relative")

    def rounding(self, unit: Unit) -> list[str]:
        """The sites of a unit whose weights are rounded."""
        return [site.name for site in unit.sites if self.fit.rounds(site)]

    def dropped(self, unit: Unit, learning: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """The quantizers of a unit while it learns, which drop; its random numbers are its own."""
        random = torch.Generator(self.fit.model.device).manual_seed(key(self.seed, f"drop {unit.name}", 0))
        return {path: Dropped(module, self.how.drop, random) for path, module in learning.items()}

    def schedule(self, unit: Unit) -> Learning:
        """How a unit learns."""
        return self.how.scaled(self.fit.weight_spec(site).bits for site in unit.sites if self.fit.rounds(site))

    def learner(self, unit: Unit, layers: Mapping[str, nn.Module], learning: Mapping[str, nn.Module]) -> Learner:
        """What learns in a unit whose `layers`, and `learning` in the place of their quantizers, are installed."""
        softs = {site.name: self.soft(site) for site in unit.sites if self.fit.rounds(site)}
        linears = {name: layer for name, layer in layers.items() if isinstance(layer, QuantLinear) and name in softs}
        return Learner(linears, softs, {p: step for p, step in learning.items() if isinstance(step, LearnedStep)})

    @cached_property
    def importance(self) -> dict[str, Tensor]:
        """The Fisher weights of the units' outputs; empty if all errors weigh alike."""
        units = [unit for group in self.units for unit in group]
        return importances(self.fit.model, self.fit.data, units, self.seed) if self.fisher else {}

    def weighting(self, unit: Unit) -> Tensor | None:
        """What the errors of a unit's outputs weigh, relative to the mean: nothing in rows that nobody attends to."""
        fisher = self.importance.get(unit.name)
        if unit.layer is None or (share := self.share(unit.layer)) is None:
            return fisher
        return share if fisher is None else share * fisher

    def share(self, site: str) -> Tensor | None:
        """What the errors of a layer's rows weigh, [points, rows, 1], with mean 1; None where all weigh alike."""
        attended = self.fit.model.attended(site, self.fit.data.y)
        return None if attended is None else (attended / attended.float().mean()).unsqueeze(-1)

    def soft(self, site: Site) -> LearnedWeight:
        """A site's weight, ready to learn."""
        weight, spec = self.fit.weight_of(site), self.fit.weight_spec(site)
        return SoftWeight(weight, self.fit.grid(site), spec, self.how.scale_aware)

    def layers(self, unit: Unit, like: str | None = None) -> dict[str, nn.Module]:
        """What is installed for a unit, its weights not rounded; `like`: for the unit's copy of that name instead."""
        names = [site.name for site in unit.sites] if like is None else [like]
        made: dict[str, nn.Module] = {name: self.layer(name) for name in names}
        if unit.layer is None and unit.segment.block is not None:
            made |= self.fit.processors(unit.segment.block)
        return made

    def layer(self, name: str) -> nn.Module:
        """The quantized layer of a site, with its weight rounded if that is known by now."""
        full = self.fit.model.denoiser.get_submodule(name)
        return QuantLinear(full, self.weights.get(name), self.fit.quantizers.get(name)).eval()

    def passed(self, part: Segment) -> dict[str, nn.Module]:
        """The layers of a segment through which the second walk passes: those that are finished."""
        if self.lagging:
            return {}
        made = {site.name: self.layer(site.name) for site in part.sites if site.name in self.done}
        return made | (self.fit.processors(part.block) if part.block is not None else {})

    def static(self, layers: Mapping[str, nn.Module]) -> dict[str, StaticQuantizer]:
        """The static quantizers inside installed layers, by path."""
        return {path: m for path, m in quantizers(layers, self.exact) if isinstance(m, StaticQuantizer)}

    def alike(self, one: Site, other: Site) -> bool:
        """Whether two layers are equal and quantized alike."""
        fit, inputs = self.fit, self.fit.rewrite.inputs
        if fit.policy[one.name] != fit.policy[other.name] or one.name in inputs or other.name in inputs:
            return False
        pair = fit.layer(one), fit.layer(other)
        if any(getattr(layer, "branch", None) is not None for layer in pair):
            return False
        return all(_equal(*(getattr(layer, key) for layer in pair)) for key in ("weight", "bias"))

    def restore(self, unit: Unit) -> bool:
        """Whether an earlier run finished a unit, which is then kept; one with nothing to learn is always finished.

        Raises:
            UserError: the file is damaged or of another model.
        """
        steps = {f"{path}.step": m for path, m in self.static(self.layers(unit)).items()}
        sites = [site for site in unit.sites if self.fit.rounds(site)]
        if not sites and not steps:
            self.keep(unit, {}, {})
            return True
        found = load_named(self.fit, unit.name, sites, {key: self.shape(m) for key, m in steps.items()})
        if found is None:
            return False
        self.keep(unit, found[0], {key.removesuffix(".step"): step for key, step in found[1].items()})
        return True

    def shape(self, module: StaticQuantizer) -> tuple[int, ...]:
        """Of what a static quantizer learns (`LearnedStep.numbers`)."""
        return tuple(module.scale.shape)

    def save(self, unit: Unit, rounded: Mapping[str, Rounded], steps: Mapping[str, Tensor]) -> None:
        """Save a finished unit, whole or not at all."""
        save_named(self.fit.folder, unit.name, rounded, {f"{place}.step": step for place, step in steps.items()})

    def keep(self, unit: Unit, rounded: Mapping[str, Rounded], steps: Mapping[str, Tensor]) -> None:
        """Keep a finished unit: its weights, and its step sizes in the quantizers; also for copies of its layer."""
        self.weights.update(rounded)
        static = self.static(self.layers(unit))
        for path, step in steps.items():
            _put(static[path], step)
        for twin, original in unit.twins.items():
            self.weights |= {twin: rounded[original]} if original in rounded else {}
            static = self.static(self.layers(unit, like=twin))
            for path, step in steps.items():
                if path.startswith(f"{original}."):
                    _put(static[twin + path.removeprefix(original)], step)
        self.done |= {site.name for site in unit.sites} | set(unit.twins)


def _put(module: StaticQuantizer, numbers: Tensor) -> None:
    """Give a static quantizer what it learned: its scale, or scale and zero point."""
    module.scale.copy_(numbers[:, :1])
    if numbers.shape[1] > 1:
        module.zero_point.copy_(numbers[:, 1:])


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Let the network's own parameters need no gradient for a while; `requires_grad` is restored afterwards."""
    free = [tensor for tensor in chain(network.parameters(), network.buffers()) if tensor.requires_grad]
    for tensor in free:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in free:
            tensor.requires_grad_()


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one is other:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)
