"""A recipe's parts, and the fit: plan a policy, calibrate what needs it, round the weights, make the layers.

Order, always: statistics, transform, policy, ranges, rounding, layers, correction. A weight is quantized once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qdit.activation import DynamicActivation, StaticActivation
from qdit.attention.base import AttentionPart, processors
from qdit.calibration import CalibrationData, NoCalibration
from qdit.calibration.statistics import input_values
from qdit.correction import Correction, NoiseCorrection, corrected
from qdit.errors import UserError
from qdit.hessian import rule as hessian
from qdit.hessian.refine import refine
from qdit.layers import QuantLinear, Shared, matrix, replaced
from qdit.model.base import DiffusionModel, Site
from qdit.policy import LayerSpec, Policy
from qdit.quant.affine import Affine
from qdit.quant.spec import QuantSpec, divisors
from qdit.quant.time_groups import ALL, Groups
from qdit.rounding import Rounding
from qdit.scope import Scope
from qdit.transform import Rewrite, RunTime, Transform, rewritten
from qdit.weight import WeightGrid

if TYPE_CHECKING:
    from qdit.search.base import Allocation, Search, Setting


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The interchangeable parts of a method, one a config group."""

    scope: Scope
    weight: WeightGrid
    activation: DynamicActivation | StaticActivation
    rounding: Rounding
    weight_bits: int
    activation_bits: int
    calibration: Any
    attention: AttentionPart | None = None
    """Quantizes queries, keys, values and probabilities; None leaves attentions in full precision."""
    transform: Transform | None = None
    """Rewrites the network before anything else; None leaves it as it is."""
    search: "Search | None" = None
    """Chooses group sizes; None gives all sites those of `weight` and `activation`."""
    correction: Correction | None = None
    """Is fitted to the quantized model's predictions; None leaves them."""

    def problems(self, sites: list[Site]) -> list[str]:
        """What cannot work on a model with these sites, one sentence each."""
        found = self.scope.problems(sites)
        for key, part in {"weight": self.weight, "activation": self.activation}.items():
            size = part.group_size if self.search is None else None  # a search has sizes of its own
            bad = {
                s.in_features: s.name for s in sites if size and self.scope.why_not(s) is None and s.in_features % size
            }
            found += [
                f"{key}.group_size={size} does not divide {name} ({channels} inputs); {divisors(channels)} do"
                for channels, name in bad.items()
            ]
        found += self.transform.problems(sites) if self.transform is not None else []
        found += hessian.problems(self)
        needy = ["transform"] * (self.transform is not None and self.transform.needs_calibration)
        needy += ["weight"] * (hessian.rules(self)[0] is not None)
        needy += ["rounding"] * (self.rounding.needs_calibration and self.weight_bits < 16)
        needy += ["activation"] * (self.activation.needs_ranges and self.activation_bits < 16)
        if self.attention is not None and self.attention.specs(self.activation_bits, self.activation.time):
            needy += ["attention"] * self.attention.needs_calibration
        needy += ["search"] * (self.search is not None and self.search.needs_calibration)
        if needy and isinstance(self.calibration, NoCalibration):
            found.append(f"{' and '.join(needy)} needs data, and calibration=none gives none; use calibration=uniform")
        return found + (self.search.problems(self, sites) if self.search is not None and not found else [])

    @property
    def layer(self) -> LayerSpec:
        """The specs of a site in scope."""
        return LayerSpec(
            weight=_unless_identity(self.weight.spec(self.weight_bits)),
            activation=_unless_identity(self.activation.spec(self.activation_bits)),
        )

    def completed(self, policy: Policy, model: DiffusionModel) -> Policy:
        """A policy of layers that are all alike, with what is particular to some of them, and with attentions."""
        roles = {site.name: site.role for site in model.sites()}
        own = Policy({name: self.particular(layer, roles[name]) for name, layer in policy.items()})
        return self.with_attention(own, model)

    def particular(self, layer: LayerSpec, role: str) -> LayerSpec:
        """The specs of a site with a role, where others have those of `layer`."""
        part = self.activation
        return replace(layer, activation=part.regions.at(role, layer.activation, part.time))

    def with_attention(self, policy: Policy, model: DiffusionModel) -> Policy:
        """`policy` with the quantized operands of the model's attentions as further sites."""
        if self.attention is None:
            return policy
        specs = self.attention.specs(self.activation_bits, self.activation.time)
        operands = {
            a.sites[o]: LayerSpec(weight=None, activation=s) for a in model.attentions() for o, s in specs.items()
        }
        return Policy(policy | {site: spec for site, spec in operands.items() if not self.scope.excluding(site)})

    def run_time(self, model: DiffusionModel) -> list[RunTime]:
        """What the transform leaves to be done to inputs at run time."""
        return self.transform.run_time(model, self.scope.select(model.sites())) if self.transform is not None else []

    def plan(self, sites: list[Site]) -> Policy:
        """The same specs at every linear site in scope; with a search, a policy that it might find."""
        if self.search is not None:
            return self.search.plan(self, sites)
        return Policy(dict.fromkeys((site.name for site in self.scope.select(sites)), self.layer))


def _unless_identity(spec):
    return None if spec.is_identity else spec


@dataclass
class Fit:
    """What the parts see of a fit in progress: the full-precision model, the policy, and data on demand.

    The model is the rewritten one for as long as the fit lasts, so that every part works in the transformed basis.
    """

    model: DiffusionModel
    recipe: Recipe
    policy: Policy
    collect: Callable[[], CalibrationData]
    folder: Path | None = None
    """Where a long rounding saves what is finished, to go on behind it after a kill; None saves nothing."""
    rewrite: Rewrite = field(default_factory=Rewrite)
    """What the transform made of the model."""
    searched: dict[str, Affine] = field(default_factory=dict)
    """The grids of weights, by site, that were found from more than the weights themselves."""

    @cached_property
    def sites(self) -> list[Site]:
        """The quantized sites in forward order."""
        return [s for s in self.model.sites() if s.name in self.policy]

    @cached_property
    def data(self) -> CalibrationData:
        """The calibration data, collected when first asked for."""
        return self.collect()

    def layer(self, site: Site) -> nn.Module:
        """The full-precision layer of a site."""
        return self.model.denoiser.get_submodule(site.name)

    def weight_of(self, site: Site) -> Tensor:
        """The full-precision weight [out, in] of a site."""
        return matrix(self.layer(site))

    def rounds(self, site: Site) -> bool:
        """Whether the site's weight is quantized."""
        return self.policy[site.name].weight is not None

    def weight_spec(self, site: Site) -> QuantSpec:
        """How a site's weight is quantized, which it must be."""
        spec = self.policy[site.name].weight
        assert spec is not None, f"the weight of {site.name} is not quantized"
        return spec

    def grid(self, site: Site) -> Affine:
        """The grid of a site's weight."""
        if site.name in self.searched:
            return self.searched[site.name]
        return self.recipe.weight.fit(self.weight_of(site), self.weight_spec(site))

    def by_input(self, sites: list[Site]) -> list[list[Site]]:
        """Sites, in forward order, grouped by the one quantized input that they read: q, k and v are a group."""
        groups = groupby(sites, key=lambda s: (s.block, s.role, s.stage, self.policy[s.name].activation))
        return [list(readers) for _, readers in groups]

    @property
    def static(self) -> list[Site]:
        """The sites whose inputs have calibrated ranges."""
        return [s for s in self.sites if (spec := self.policy[s.name].activation) is not None and not spec.dynamic]

    @cached_property
    def time(self) -> Groups:
        """The groups of timesteps with grids of their own."""
        return self.recipe.activation.time.split(self.model, self.static, self.data)

    def groups(self, place: str) -> Groups:
        """The groups of timesteps of one of the places of `qdit.activation.time`; where there are none, all."""
        return self.time if self.recipe.activation.time.count(place) else ALL

    @cached_property
    def attention(self) -> dict[str, nn.Module]:
        """What rounds the operands of attentions, by site; `processors` holds these very modules."""
        part = self.recipe.attention
        return part.quantizers(self, self.model.attentions()) if part is not None else {}

    def processors(self, block: str = "") -> dict[str, nn.Module]:
        """The attentions with quantized operands inside the module of path `block`, by where `replaced` puts them."""
        if not self.attention:
            return {}
        chosen = [a for a in self.model.attentions() if not block or a.name.startswith(f"{block}.")]
        return processors(chosen, self.attention)

    @cached_property
    def quantizers(self) -> dict[str, nn.Module]:
        """What is done to the input of a site: the transform's part at run time, then rounding; q, k and v share it."""
        values: dict[str, list[Tensor]] = {}
        if self.static:
            values = input_values(self.model, self.static, self.data, self.rewrite.inputs, self.groups("inputs"))
        made: dict[str, nn.Module] = {}
        for readers in self.by_input(self.sites):
            name = readers[0].name
            steps = [self.rewrite.inputs[name]] if name in self.rewrite.inputs else []
            if (spec := self.policy[name].activation) is not None:
                found = values.get(name), self.groups("inputs"), self.model.clock
                steps.append(self.recipe.activation.quantizer(spec, *found).to(self.model.device))
            if steps:
                step = nn.Sequential(*steps) if len(steps) > 1 else steps[0]
                shared = Shared(step, len(readers)) if len(readers) > 1 else step
                made |= {reader.name: shared for reader in readers}
        return made


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
    folder: Path | None = None,
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
    folder: Path | None = None,
    rewrite: Rewrite | None = None,
) -> Quantized:
    """Round the weights and make the layers of a given policy; arguments as `quantize`.

    `rewrite` is what the recipe's transform makes of the model, None to have it made here.
    """
    if rewrite is None:
        rewrite = rewritten(recipe.transform, model, recipe.scope.select(model.sites()), collect, folder)
    with rewrite.installed(model):
        fit = Fit(model, recipe, recipe.completed(policy, model), collect, folder, rewrite)
        fit.searched = refine(fit)
        weights = recipe.rounding.weights(fit)
        layers: dict[str, nn.Module] = {
            site.name: QuantLinear(fit.layer(site), weights.get(site.name), fit.quantizers.get(site.name)).eval()
            for site in fit.sites
        }
        attention = fit.processors()
    return Quantized(fit.policy, layers, attention, rewrite=rewrite)
