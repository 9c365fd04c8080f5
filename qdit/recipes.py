"""A recipe: the interchangeable parts of a method, one a config group, and the policy that they plan."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qdit.activation import DynamicActivation, StaticActivation
from qdit.attention.base import AttentionPart
from qdit.calibration import NoCalibration
from qdit.correction import Correction
from qdit.hessian import rule as hessian
from qdit.model.base import DiffusionModel, Site
from qdit.policies import LayerSpec, Policy
from qdit.quant.spec import QuantSpec, divisors
from qdit.rounding import Rounding
from qdit.scope import Scope
from qdit.transform import RunTime, Transform
from qdit.weight import WeightGrid

if TYPE_CHECKING:
    from qdit.search.base import Search


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
    """Chooses the points that the other parts see; `NoCalibration` where none is needed."""
    attention: AttentionPart | None = None
    """Quantizes queries, keys, values and probabilities; None leaves attentions in full precision."""
    transform: Transform | None = None
    """Rewrites the network before anything else; None leaves it as it is."""
    search: "Search | None" = None
    """Chooses group sizes or bits; None gives all sites those of `weight`, `activation` and the two bit-widths."""
    correction: Correction | None = None
    """Is fitted to the quantized model's predictions, and corrects them; None leaves them."""

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
        bases = self.transform.bases(role) if self.transform is not None else 1
        return replace(layer, activation=part.regions.at(role, layer.activation, part.time), bases=bases)

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


def _unless_identity(spec: QuantSpec) -> QuantSpec | None:
    return None if spec.is_identity else spec
