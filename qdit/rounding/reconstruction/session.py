"""The reconstruction of one fit, resumable: each unit is read from disk if it was finished, or learns and is saved.

Nothing but what was saved (`finished`) decides how the next unit learns: inputs and targets are computed again from it,
and each unit shuffles with a random stream of its own. A fit that was killed and is started again ends with the bytes
of an undisturbed one.
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
from qdit.rounding.reconstruction.finished import Finished
from qdit.rounding.reconstruction.fisher import importances
from qdit.rounding.reconstruction.loop import Learner, Learning, error, reconstruct
from qdit.rounding.reconstruction.soft import LearnedWeight, SoftWeight
from qdit.rounding.reconstruction.ste import Dropped, LearnedStep, dropping, fixed, learnable, quantizers
from qdit.rounding.reconstruction.targets import Targets
from qdit.rounding.reconstruction.temporal import temporal, temporal_task
from qdit.rounding.reconstruction.units import Unit, list_units
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
        self.finished = Finished(fit, self.shape)
        self.seed: int = fit.seed
        self.static_count = self.fixed_count = 0  # quantizers of the units that learned

    def run(self) -> dict[str, Rounded]:
        """The rounded weights of all units."""
        missing = {unit.name for group in self.units for unit in group if not self.finished.restore(unit)}
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
        return self.finished.weights

    def learn(self, unit: Unit, targets: Targets, bar: tqdm) -> None:
        """Reconstruct a unit, save it and keep it."""
        layers, passed = self.finished.layers(unit), self.passed(unit.segment)
        inner = targets.inner(unit, self.rounding(unit)) if self.how.inner else {}
        shares = {name: share for name in inner if (share := self.share(name)) is not None}
        about = self.fit.model, self.fit.data
        made = temporal_task(*about) if unit.temporal else targets.task(unit, passed, self.weighting(unit))
        task = replace(made, inner=inner, shares=shares)
        found = [module for _, module in quantizers(layers, self.finished.exact)]
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
            before = error(task, self.how.batch_size)
            if not isfinite(before):
                raise UserError(f"{self.name}: the outputs of {unit.name} are not finite; try dtype=float32")
            with frozen(self.fit.model.denoiser), repeatable(self.fit.model.device), dropping(installed.values()):
                reconstruct(task, learner, self.schedule(unit), random, bar.update)
            learner.harden()
            after = error(task, self.how.batch_size)
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
        self.finished.save(unit, *result)
        self.finished.keep(unit, *result)

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
        return learnable(layers, self.finished.exact, relative=self.how.step_unit == "relative")

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
    def importance(self) -> dict[str, list[Tensor]]:
        """The Fisher weights of the tensors that units return; empty if all errors weigh alike."""
        units = [unit for group in self.units for unit in group]
        return importances(self.fit.model, self.fit.data, units, self.seed) if self.fisher else {}

    def weighting(self, unit: Unit) -> list[Tensor] | None:
        """What the errors of a unit's outputs weigh, relative to the mean: nothing in rows that nobody attends to."""
        fisher = self.importance.get(unit.name)
        if unit.layer is None or (share := self.share(unit.layer)) is None:
            return fisher
        return [share] if fisher is None else [share * own for own in fisher]

    def share(self, site: str) -> Tensor | None:
        """What the errors of a layer's rows weigh, [points, rows, 1], with mean 1; None where all weigh alike."""
        attended = self.fit.model.attended(site, self.fit.data.y)
        return None if attended is None else (attended / attended.float().mean()).unsqueeze(-1)

    def soft(self, site: Site) -> LearnedWeight:
        """A site's weight, ready to learn."""
        weight, spec = self.fit.weight_of(site), self.fit.weight_spec(site)
        return SoftWeight(weight, self.fit.grid(site), spec, self.how.scale_aware)

    def passed(self, part: Segment) -> dict[str, nn.Module]:
        """The layers of a segment through which the second walk passes: those that are finished."""
        if self.lagging:
            return {}
        made = {site.name: self.finished.layer(site.name) for site in part.sites if site.name in self.finished.sites}
        return made | (self.fit.processors(part.block) if part.block is not None else {})

    def alike(self, one: Site, other: Site) -> bool:
        """Whether two layers are equal and quantized alike."""
        fit, inputs = self.fit, self.fit.rewrite.inputs
        if fit.policy[one.name] != fit.policy[other.name] or one.name in inputs or other.name in inputs:
            return False
        pair = fit.layer(one), fit.layer(other)
        if any(getattr(layer, "branch", None) is not None for layer in pair):
            return False
        return all(_equal(*(getattr(layer, key) for layer in pair)) for key in ("weight", "bias"))

    def shape(self, module: StaticQuantizer) -> tuple[int, ...]:
        """Of what a static quantizer learns (`LearnedStep.numbers`)."""
        return tuple(module.scale.shape)


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
