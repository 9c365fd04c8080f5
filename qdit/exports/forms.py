"""What a quantized layer does, in words that do not depend on its numbers: of a layer that is fitted, or of a recipe.

A format of others is asked with a `Form` whether it can say a layer; so a recipe can be asked before it is fitted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from qdit.method import Method
from qdit.model.base import DiffusionModel, Site
from qdit.nn.attention import Attend
from qdit.nn.basis import Permuted, Regular, Rotation, Scale, Shift
from qdit.nn.linear import QuantLinear, Shared
from qdit.nn.patches import patch_size
from qdit.nn.switch import TimedLinear
from qdit.policies import LayerSpec
from qdit.quant.spec import QuantSpec
from qdit.transform.blocks import BlockRotation
from qdit.transform.lowrank import LowRank
from qdit.transform.reparam import Reparameterization
from qdit.transform.rotation import Hadamard
from qdit.transform.scaling import Scaling
from qdit.transform.shift import Centred

FACTORS, OFFSETS, ROTATION = "factors of inputs", "offsets of inputs", "rotation of inputs at run time"
BRANCH, TIMED, PATCHES = "low-rank branch", "weights that change with the timestep", "quantized patch embedding"
OPERANDS = "rounded operands of attentions"
_CHANGES = {Scale: FACTORS, Shift: OFFSETS, Rotation: ROTATION, Permuted: ROTATION, Regular: ROTATION}
_LEFT = {Scaling: FACTORS, Reparameterization: OFFSETS, Centred: OFFSETS, Hadamard: ROTATION, BlockRotation: ROTATION}
_LEFT |= {LowRank: BRANCH}
"""What a transform leaves where it cannot be folded, by its class."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a layer does beside the product."""

    weight: QuantSpec | None
    inputs: QuantSpec | None
    """How its input is rounded."""
    parts: tuple[str, ...] = ()
    """Whatever else it has, such as a low-rank branch."""

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but a weight in full precision."""
        return self.weight is None and self.inputs is None and not self.parts


def steps(quantizer: nn.Module | None) -> Iterator[nn.Module]:
    """What is done to an input, one after the other: changes of its basis, then what rounds it."""
    if isinstance(quantizer, Shared):
        yield from steps(quantizer.quantizer)
    elif isinstance(quantizer, nn.Sequential):
        for each in quantizer:
            yield from steps(each)
    elif quantizer is not None and not isinstance(quantizer, nn.Identity):
        yield quantizer


def form_of(layer: nn.Module) -> Form:
    """The form of a module that stands in a quantized network."""
    if type(layer) in (nn.Linear, nn.Conv2d, nn.Conv3d):  # into which a transform was folded
        return Form(weight=None, inputs=None)
    if not isinstance(layer, QuantLinear):
        found = {TimedLinear: TIMED, Attend: OPERANDS}.get(type(layer), type(layer).__name__)
        return Form(weight=None, inputs=None, parts=(found,))
    inputs, parts = None, list[str]()
    for step in steps(layer.quantizer):
        spec = getattr(step, "spec", None)
        if isinstance(spec, QuantSpec):
            inputs = spec
        else:
            parts.append(_CHANGES.get(type(step), f"{type(step).__name__} at run time"))
    parts += [BRANCH] * (layer.branch is not None) + [PATCHES] * (layer.patch is not None)
    weight = layer.rounded.spec if layer.rounded is not None else None
    return Form(weight=_of_rows(weight, layer.weight.shape[1]), inputs=inputs, parts=tuple(parts))


def _of_rows(spec: QuantSpec | None, channels: int) -> QuantSpec | None:
    """A weight's spec; groups as long as a row are rows."""
    return replace(spec, granularity="row", group_size=None) if spec and spec.group_size == channels else spec


def forms_of(method: Method, model: DiffusionModel) -> dict[str, Form]:
    """The forms that a recipe would give a model's modules, by name, without a fit; a search may choose others."""
    sites = method.scope.select(model.sites())
    policy = method.completed(method.plan(model.sites()), model)
    left: dict[str, list[str]] = {site.name: [] for site in sites}
    for step in method.transform.parts.values() if method.transform is not None else ():
        what = next((words for kind, words in _LEFT.items() if isinstance(step, kind)), None)
        for cost in step.run_time(model, sites) if what else ():
            for site in sites:  # all that read the same input share what is done to it
                if (site.reads or site.name) == (cost.site.reads or cost.site.name) and what not in left[site.name]:
                    left[site.name].append(str(what))
    for site in sites:
        left[site.name] += [PATCHES] * (patch_size(model.denoiser.get_submodule(site.name)) is not None)
    found = {site.name: _planned(policy[site.name], left[site.name], site) for site in sites if site.name in policy}
    operands = Form(weight=None, inputs=None, parts=(OPERANDS,))
    return found | {a.name: operands for a in model.attentions() if policy.keys() & {*a.sites.values()}}


def _planned(layer: LayerSpec, parts: list[str], site: Site) -> Form:
    if len(layer.weights) > 1:
        return Form(weight=None, inputs=None, parts=(TIMED,))
    return Form(weight=_of_rows(layer.weight, site.in_features), inputs=layer.activation, parts=tuple(parts))
