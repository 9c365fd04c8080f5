"""Fit a recipe to a model (calibration and conversion): plan a policy, calibrate, round the weights, make the layers.

The order is always: statistics, transform, policy, ranges, rounding, layers, repair, correction. A weight is
quantized once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch

from qdit.calibration import CalibrationData
from qdit.errors import UserError
from qdit.fit import Fit
from qdit.hessian.refine import refine
from qdit.model.base import DiffusionModel, Turn
from qdit.nn.linear import QuantLinear
from qdit.nn.replace import current, replaced
from qdit.nn.switch import Now, TimedLinear
from qdit.policies import Policy
from qdit.quantized import Quantized
from qdit.recipes import Recipe
from qdit.storage.shelf import Place
from qdit.tracking import Tracker
from qdit.transform import Rewrite, Trial, joined, rewritten
from qdit.transform.timestep_aware import RewriteByRange, points_within


@torch.no_grad()
def fit_policy(
    model: DiffusionModel,
    recipe: Recipe,
    policy: Policy,
    collect: Callable[[], CalibrationData],
    folder: Place | None = None,
    rewrite: Rewrite | None = None,
    tracker: Tracker | None = None,
) -> Quantized:
    """Round the weights and make the layers of a given policy; arguments as `quantize`.

    `rewrite` is what the recipe's transform makes of the model, None to have it made here. `tracker` gets the errors
    that rounding leaves.
    """
    if model.turns():
        return _fit_turns(model, recipe, policy, cache(collect), folder, tracker)
    if rewrite is None:
        sites = recipe.scope.select(model.sites())
        rewrite = rewritten(recipe.transform, model, sites, collect, Trial(recipe), folder)
    if isinstance(rewrite, RewriteByRange):
        return _fit_ranges(model, recipe, policy, cache(collect), folder, rewrite)
    original = current(model.denoiser, rewrite.layers)

    def drawn() -> CalibrationData:
        with replaced(model.denoiser, original):  # other recipes share the data, and know nothing of this rewrite
            return collect()

    with rewrite.installed(model):
        seed = getattr(recipe.calibration, "seed", 0)
        fit = Fit(model, recipe, recipe.completed(policy, model), drawn, folder, rewrite, seed=seed)
        fit.tracker = tracker or fit.tracker
        fit.searched = refine(fit)
        weights = recipe.rounding.weights(fit)
        layers = {
            site.name: QuantLinear(fit.layer(site), weights.get(site.name), fit.quantizers.get(site.name)).eval()
            for site in fit.sites
        }
        if recipe.repair is not None:
            recipe.repair.repair(fit, layers)
        attention = fit.processors()
    return Quantized(fit.policy, {**layers}, attention, rewrite=rewrite)


def _fit_turns(
    model: DiffusionModel,
    recipe: Recipe,
    policy: Policy,
    collect: Callable[[], CalibrationData],
    folder: Place | None,
    tracker: Tracker | None,
) -> Quantized:
    """A fit for each network that takes turns with others, on the points of its timesteps; one result holds all."""
    whole, fits = recipe.completed(policy, model), []
    for turn in model.turns():
        names = {site.name for site in turn.model.sites()}
        own = Policy({name: layer for name, layer in policy.items() if name in names})
        if not recipe.completed(own, turn.model):  # the scope leaves this network as it is
            continue
        points = partial(_points_of, turn, collect)
        fits.append(fit_policy(turn.model, recipe, own, points, folder / turn.name if folder else None, None, tracker))
    layers = {name: layer for fit in fits for name, layer in fit.layers.items()}
    attention = {name: processor for fit in fits for name, processor in fit.attention.items()}
    return Quantized(whole, layers, attention, rewrite=joined([fit.rewrite for fit in fits]))


def _points_of(turn: Turn, collect: Callable[[], CalibrationData]) -> CalibrationData:
    """The calibration points at a network's timesteps.

    Raises:
        UserError: there are none.
    """
    data = collect()
    if not len((points := data.at(turn.takes)).t):
        raise UserError(
            f"none of the {len(data.t)} calibration points is at the timesteps of {turn.name} ({turn.first:g} up to "
            f"{turn.end:g}); use more of calibration.num_samples, calibration.per_trajectory or sampler.steps"
        )
    return points


def _fit_ranges(
    model: DiffusionModel,
    recipe: Recipe,
    policy: Policy,
    collect: Callable[[], CalibrationData],
    folder: Place | None,
    rewrite: RewriteByRange,
) -> Quantized:
    """A fit for each range of timesteps, on its points and in its basis; the clock picks among their layers.

    What the transform does not change (other sites, attentions) has one basis and is fitted once, on all points. It is
    in full precision while the ranges are fitted.
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
