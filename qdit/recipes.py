"""A recipe: a quantization scheme and how one fit reaches it, in interchangeable parts, one from each config group."""

from dataclasses import dataclass, field, replace
from typing import Any

from qdit.calibration import NoCalibration
from qdit.checked import NEWER
from qdit.hessian import rule as hessian
from qdit.ledger import RunTime
from qdit.model.base import DiffusionModel, Site
from qdit.policies import LayerSpec, Policy
from qdit.quant.spec import divisors
from qdit.repair import Repair
from qdit.rounding import Rounding
from qdit.scheme import Scheme
from qdit.scope import Scope
from qdit.transform import Transform
from qdit.transform.timestep_aware import TimestepAware


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe(Scheme):
    """What one fit does, and where; a `qdit.method.Method` may search before it and correct after it."""

    scope: Scope
    rounding: Rounding
    calibration: Any
    """Chooses the calibration points that the other parts see; `NoCalibration` where none are needed."""
    transform: Transform | None = None
    """Rewrites the network before anything else; None leaves it as it is."""
    repair: Repair | None = field(default=None, metadata=NEWER)
    """Changes quantized layers behind rounding; None leaves them."""

    def problems(self, sites: list[Site]) -> list[str]:
        """What cannot work on a model with these sites, one sentence each."""
        found = self.scope.problems(sites) + self.misfits(sites) + self.weight.problems(sites)
        found += self.transform.problems(sites) if self.transform is not None else []
        found += hessian.problems(self)
        if isinstance(self.transform, TimestepAware) and getattr(self.repair, "inputs", None) == "quantized":
            found.append(
                "repair.inputs=quantized repairs one layer after the other, and transform=timestep_aware fits a "
                "network for each range of timesteps apart; use repair.inputs=full_precision"
            )
        if (needy := self.needy) and isinstance(self.calibration, NoCalibration):
            found.append(f"{' and '.join(needy)} needs data, and calibration=none gives none; use calibration=uniform")
        return found

    def misfits(self, sites: list[Site]) -> list[str]:
        """The group sizes that do not divide the channels of sites in scope, one sentence each."""
        found = []
        for key, part in {"weight": self.weight, "activation": self.activation}.items():
            size = part.group_size
            bad = {
                s.in_features: s.name for s in sites if size and self.scope.why_not(s) is None and s.in_features % size
            }
            for channels, name in bad.items():
                advice = f"{key}.group_size={size} does not divide {name} ({channels} inputs); {divisors(channels)} do"
                if part.scale is not None:
                    advice = (
                        f"{key}: blocks of {size} (scale={part.scale}) do not divide {name} ({channels} inputs); leave "
                        "such layers out with scope.exclude, or use a format without blocks, such as bits=fp8"
                    )
                found.append(advice)
        return found

    @property
    def needy(self) -> list[str]:
        """The config groups of the parts that need calibration data."""
        found = ["transform"] * (self.transform is not None and self.transform.needs_calibration)
        found += ["weight"] * (hessian.rules(self)[0] is not None)
        found += ["rounding"] * (self.rounding.needs_calibration and self.weight_bits < 16)
        found += ["repair"] * (self.repair is not None and self.repair.needs_calibration)
        found += ["activation"] * (self.activation.needs_ranges and self.activation_bits < 16)
        if self.attention is not None and self.operands:
            found += ["attention"] * self.attention.needs_calibration
        return found

    def completed(self, policy: Policy, model: DiffusionModel) -> Policy:
        """A policy in which all layers are equal, adapted to the roles that differ, with attentions added."""
        sites = {site.name: site for site in model.sites()}
        own = Policy({name: self.particular(layer, sites[name]) for name, layer in policy.items()})
        return self.with_attention(own, model)

    def particular(self, layer: LayerSpec, site: Site) -> LayerSpec:
        """The specs of a site, where others have those of `layer`."""
        role = site.role
        bases = self.transform.bases(role) if self.transform is not None else 1
        weight, activation = self.weight.at(role, layer.weight), self.activation.at(role, layer.activation)
        if site.second and activation is not None and getattr(self.activation, "columns", "joined") == "own":
            whole = activation.granularity == "group" or activation.grid == "two_sided"  # groups are apart as they are
            activation = activation if whole else replace(activation, columns=site.second)
        spans = tuple(replace(span, weight=self.weight.at(role, span.weight)) for span in layer.spans)
        return replace(layer, weight=weight, activation=activation, spans=spans, bases=bases)

    def with_attention(self, policy: Policy, model: DiffusionModel) -> Policy:
        """`policy` with the quantized operands of the model's attentions as further sites."""
        specs = self.operands
        operands = {
            a.sites[o]: LayerSpec(weight=None, activation=s) for a in model.attentions() for o, s in specs.items()
        }
        return Policy(policy | {site: spec for site, spec in operands.items() if not self.scope.excluding(site)})

    def run_time(self, model: DiffusionModel) -> list[RunTime]:
        """The changes of inputs that the transform could not fold into weights."""
        return self.transform.run_time(model, self.scope.select(model.sites())) if self.transform is not None else []

    def plan(self, sites: list[Site]) -> Policy:
        """The same specs at every linear site in scope."""
        return Policy(dict.fromkeys((site.name for site in self.scope.select(sites)), self.layer))
