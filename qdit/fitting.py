"""Fit a recipe to a model: plan a policy, calibrate what needs it, round the weights, make the layers.

Order, always: statistics, transform, policy, ranges, rounding, layers, correction. A weight is quantized once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from qdit.calibration import CalibrationData
from qdit.correction import NoiseCorrection, corrected
from qdit.errors import UserError
from qdit.execution import int8
from qdit.fit import Fit
from qdit.hessian.refine import refine
from qdit.model.base import DiffusionModel
from qdit.nn.linear import QuantLinear, present, replaced
from qdit.nn.switch import Now, TimedLinear
from qdit.policies import Policy
from qdit.recipes import Recipe
from qdit.storage.shelf import Place
from qdit.transform import Rewrite, Trial, rewritten
from qdit.transform.timestep_aware import RewriteByRange, points_within

if TYPE_CHECKING:
    from qdit.search.base import Allocation, Setting


@dataclass(frozen=True)
class Quantized:
    """A fitted quantization: the policy and the layers that carry it out."""

    policy: Policy
    layers: dict[str, nn.Module]
    """By linear site."""
    attention: dict[str, nn.Module] = field(default_factory=dict)
    """Attentions that round their operands, by the path of the processor that they replace."""
    allocation: "Allocation | None" = None
    """How a search found the policy."""
    rewrite: Rewrite = field(default_factory=Rewrite)
    """The full-precision network whose sites the layers replace."""
    correction: NoiseCorrection | None = None
    """What the sampler does to the guided output (its `hook`); `installed` does not."""

    @property
    def executed(self) -> str:
        """What multiplies in the layers now: `int8`, `simulated`, or `int8, simulated` where it is mixed.

        Attentions that round their operands are simulated; a layer that is not a `QuantLinear` is told by its parts.
        """
        linear = [m for layer in self.layers.values() for m in layer.modules() if isinstance(m, QuantLinear)]
        integers = [int8() and layer.has_integers for layer in linear]
        kinds = ["int8"] * any(integers) + ["simulated"] * (not all(integers) or bool(self.attention) or not integers)
        return ", ".join(kinds)

    @contextmanager
    def installed(self, model: DiffusionModel) -> Iterator[DiffusionModel]:
        """`model` with the quantized layers in place; full precision is back afterwards, bit for bit."""
        with replaced(model.denoiser, {**self.rewrite.layers, **self.layers, **self.attention}):
            yield model


@torch.no_grad()
def quantize(
    model: DiffusionModel,
    recipe: Recipe,
    collect: Callable[[], CalibrationData],
    folder: Place | None = None,
    setting: "Setting | None" = None,
) -> Quantized:
    """Fit a recipe to a model; search a policy first and correct the output last, if the recipe has these parts.

    Args:
        model: the full-precision model; it is read, not changed.
        recipe: the parts.
        collect: makes the calibration data; called only if a part needs it.
        folder: where finished blocks are saved, and found again by the same fit; None saves nothing.
        setting: the run around a search or a correction; not needed without them.

    Raises:
        UserError: the recipe does not fit the model.
    """
    problems = recipe.problems(model.sites())
    if problems:
        raise UserError(*problems)
    if recipe.search is None:
        quantized = fit_policy(model, recipe, recipe.plan(model.sites()), collect, folder)
    elif setting is None:
        raise ValueError("a search needs its setting")
    else:
        quantized = recipe.search.quantize(model, recipe, collect, folder, setting)
    return corrected(recipe.correction, model, quantized, setting)


@torch.no_grad()
def fit_policy(
    model: DiffusionModel,
    recipe: Recipe,
    policy: Policy,
    collect: Callable[[], CalibrationData],
    folder: Place | None = None,
    rewrite: Rewrite | None = None,
) -> Quantized:
    """Round the weights and make the layers of a given policy; arguments as `quantize`.

    `rewrite` is what the recipe's transform makes of the model, None to have it made here.
    """
    if rewrite is None:
        sites = recipe.scope.select(model.sites())
        rewrite = rewritten(recipe.transform, model, sites, collect, Trial(recipe), folder)
    if isinstance(rewrite, RewriteByRange):
        return _fit_ranges(model, recipe, policy, cache(collect), folder, rewrite)
    original = present(model.denoiser, rewrite.layers)

    def drawn() -> CalibrationData:
        with replaced(model.denoiser, original):  # other recipes share the data, and know nothing of this rewrite
            return collect()

    with rewrite.installed(model):
        fit = Fit(model, recipe, recipe.completed(policy, model), drawn, folder, rewrite)
        fit.searched = refine(fit)
        weights = recipe.rounding.weights(fit)
        layers: dict[str, nn.Module] = {
            site.name: QuantLinear(fit.layer(site), weights.get(site.name), fit.quantizers.get(site.name)).eval()
            for site in fit.sites
        }
        attention = fit.processors()
    return Quantized(fit.policy, layers, attention, rewrite=rewrite)


def _fit_ranges(
    model: DiffusionModel,
    recipe: Recipe,
    policy: Policy,
    collect: Callable[[], CalibrationData],
    folder: Place | None,
    rewrite: RewriteByRange,
) -> Quantized:
    """A fit for each range of timesteps, on its points and in its basis; the clock picks among their layers.

    What the transform leaves alone (other sites, attentions) has one basis, and is fitted once, on all points. While a
    range is fitted, it is in full precision.
    """
    timed = Policy({name: layer for name, layer in policy.items() if name in rewrite.layers})
    linear = replace(recipe, attention=None)
    fits = []
    for number, part in enumerate(rewrite.parts):
        within = lambda n=number: points_within(collect(), rewrite.groups, n)  # noqa: E731
        place = folder / f"range_{number}" if folder else None
        fits.append(fit_policy(model, linear, timed, within, place, part))
    others = Policy({name: layer for name, layer in policy.items() if name not in timed})
    rest = fit_policy(model, recipe, others, collect, folder, Rewrite(rewrite.layers))
    now, order = Now(model.clock, rewrite.groups), range(len(fits))
    layers = {name: TimedLinear([fit.layers[name] for fit in fits], order, now).eval() for name in timed}
    layers = {name: layers[name] if name in timed else rest.layers[name] for name in policy}
    return Quantized(recipe.completed(policy, model), layers, rest.attention, rewrite=rewrite)
