"""A fit in progress (applying a recipe to a model): what its parts see of the model, the policy and the data.

The order is always: statistics, transform, policy, ranges, rounding, layers, repair, correction (`qdit.fitting`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from qdit.attention.balance import balances
from qdit.calibration import CalibrationData
from qdit.calibration.observers import input_values, operand_values
from qdit.model.base import Attention, DiffusionModel, Site
from qdit.nn.attention import Attend
from qdit.nn.balanced import Balanced
from qdit.nn.columns import ColumnParts
from qdit.nn.linear import Shared
from qdit.nn.patches import matrix
from qdit.policies import Policy
from qdit.quant.grid import RowGrid
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import ALL, Groups
from qdit.scheme import Scheme
from qdit.storage.scratch import Scratch
from qdit.storage.shelf import Place, Shelf
from qdit.tracking import NoTracker, Tracker
from qdit.transform import Rewrite


@dataclass
class Fit:
    """What the parts see of a fit in progress: the full-precision model, the policy, and data on demand.

    The model is the rewritten one for as long as the fit lasts, so that every part works in the transformed basis.
    """

    model: DiffusionModel
    recipe: Scheme
    policy: Policy
    collect: Callable[[], CalibrationData]
    folder: Place | None = None
    """Where a long rounding saves what is finished, to go on behind it after a kill; None saves nothing."""
    rewrite: Rewrite = field(default_factory=Rewrite)
    """What the transform made of the model."""
    searched: dict[str, RowGrid] = field(default_factory=dict)
    """The grids of weights, by site, that were found from more than the weights themselves."""
    seed: int = 0
    """Of what is drawn at random, that of the calibration."""
    tracker: Tracker = field(default_factory=NoTracker)
    """Gets the errors that rounding leaves, layer by layer."""

    @cached_property
    def sites(self) -> list[Site]:
        """The quantized sites in forward order."""
        return [s for s in self.model.sites() if s.name in self.policy]

    def scratch(self) -> Scratch:
        """Room for the activations of a walk, beside what is saved, where there is room for large files."""
        return Scratch(None if self.folder is None else Shelf.of(self.folder).folder)

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

    def grid(self, site: Site) -> RowGrid:
        """The grid of a site's weight."""
        if site.name in self.searched:
            return self.searched[site.name]
        return self.recipe.weight.fit(self.weight_of(site), self.weight_spec(site))

    def by_input(self, sites: list[Site]) -> list[list[Site]]:
        """Sites, in forward order, grouped by the quantized input that they consume (read): q, k and v are a group."""
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
        """The groups of timesteps of one of the places of `qdit.activation.time`; one of all where it has none."""
        return self.time if self.recipe.activation.time.count(place) else ALL

    @cached_property
    def attention(self) -> dict[str, nn.Module]:
        """What rounds the operands of attentions, by site; `processors` holds these very modules."""
        part, model = self.recipe.attention, self.model
        operands = {site: o for a in model.attentions() for o, site in a.sites.items() if site in self.policy}
        specs = {site: spec for site in operands if (spec := self.policy[site].activation) is not None}
        if part is None or not specs:
            return {}
        groups = {site: self.groups(operands[site]) for site in specs}
        values: dict[str, list[Tensor]] = {}
        chosen = [a for a in model.attentions() if a.sites["q"] in specs and a.sites["k"] in specs]
        scales = balances(model, chosen, self.data) if getattr(part, "balance", False) else {}
        if static := {site: groups[site] for site, spec in specs.items() if not spec.dynamic}:
            by_head = {site for site in static if specs[site].granularity == "head"}
            values = operand_values(model, model.attentions(), self.data, static, by_head, scales)
        made = {
            site: part.quantizer(operands[site], spec, values.get(site), groups[site], model.clock).to(model.device)
            for site, spec in specs.items()
        }
        return made | {site: Balanced(made[site], by) for site, by in scales.items()}

    def processors(self, block: str = "") -> dict[str, nn.Module]:
        """The attentions with quantized operands inside the module of path `block`, by where `replaced` puts them."""
        if not self.attention:
            return {}
        chosen = [a for a in self.model.attentions() if not block or a.name.startswith(f"{block}.")]
        return processors(chosen, self.attention)

    @cached_property
    def quantizers(self) -> dict[str, nn.Module]:
        """Module applied to an input: the transform's run-time change, then the quantizer; shared by its readers."""
        values: dict[str, list[Any]] = {}
        if self.static:
            by_channel = [
                s.name for s in self.static if (a := self.policy[s.name].activation) is not None and a.by_channel
            ]
            first, groups = self.rewrite.inputs, self.groups("inputs")
            cuts = {s.name: a.columns for s in self.static if (a := self.policy[s.name].activation) and a.columns}
            values = input_values(self.model, self.static, self.data, first, groups, by_channel, cuts)
        made: dict[str, nn.Module] = {}
        for readers in self.by_input(self.sites):
            name = readers[0].name
            steps = [self.rewrite.inputs[name]] if name in self.rewrite.inputs else []
            if (spec := self.policy[name].activation) is not None:
                steps.append(self._quantizer(readers[0], spec, values.get(name)).to(self.model.device))
            if steps:
                step = nn.Sequential(*steps) if len(steps) > 1 else steps[0]
                shared = Shared(step, len(readers)) if len(readers) > 1 else step
                made |= {reader.name: shared for reader in readers}
        return made

    def _quantizer(self, site: Site, spec: QuantSpec, values: list[Any] | None) -> nn.Module:
        """The quantizer of an input, of `values` for each group of timesteps; pairs of them for two inputs in one.

        Where a gate comes before a site, both of two regions are calibrated, as GELU's least value means nothing there.
        """
        part, about = self.recipe.activation, (self.groups("inputs"), self.model.clock)
        if site.gated and hasattr(part, "regions"):
            part = replace(part, regions=replace(part.regions, negative=None))
        make = part.quantizer
        if not spec.columns:
            return make(spec, values, *about)
        parts = (None, None) if values is None else [list(part) for part in zip(*values, strict=True)]
        first, second = (make(replace(spec, columns=None), part, *about) for part in parts)
        return ColumnParts(spec.columns, first, second)


def processors(attentions: Sequence[Attention], quantizers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """What computes the attentions that have a quantizer, by the path where `replaced` puts it."""
    made: dict[str, nn.Module] = {}
    for attention in attentions:
        own = {o: quantizers[site] for o, site in attention.sites.items() if site in quantizers}
        if own:
            made[attention.processor] = Attend(**own).eval()
    return made
