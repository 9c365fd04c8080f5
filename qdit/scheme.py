"""A quantization scheme: how weights, inputs (activations) and attentions are quantized, and with how many bits.

The parts of a fit are given this much, and no more, of the recipe that they belong to (`qdit.recipes`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qdit.activation import DynamicActivation, StaticActivation
from qdit.attention.base import AttentionPart
from qdit.errors import UserError
from qdit.policies import LayerSpec
from qdit.quant.named import NAMED, owned
from qdit.quant.spec import QuantSpec
from qdit.weight import WeightGrid


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The number formats of weights, inputs and operands of attentions."""

    weight: WeightGrid
    activation: DynamicActivation | StaticActivation
    weight_bits: int
    activation_bits: int
    attention: AttentionPart | None = None
    """Quantizes queries, keys, values and probabilities; None leaves attentions in full precision."""

    @property
    def layer(self) -> LayerSpec:
        """The specs of a site in scope."""
        return LayerSpec(
            weight=_unless_identity(self.weight.spec(self.weight_bits)),
            activation=_unless_identity(self.activation.spec(self.activation_bits)),
        )

    @property
    def operands(self) -> dict[str, QuantSpec]:
        """The specs of the operands of attentions that are quantized."""
        if self.attention is None:
            return {}
        return self.attention.specs(self.activation_bits, self.activation.time)


def in_formats(parts: Mapping[str, Any], bits: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a recipe in the number formats that a config's `bits` name, if it names any.

    A format owns its block, its scale and its symmetry, and takes the place of a part's granularity, group size and
    grid; one without blocks (`fp8`) keeps the recipe's rows, static ranges and attentions too.

    Raises:
        UserError: a part cannot have the format, one sentence each.
    """
    weight, inputs = (bits.get(key) for key in ("weight_format", "activation_format"))
    made, problems = dict(parts), list[str]()
    if weight is not None and bits["weight"] < 16:
        made["weight"] = replace(parts["weight"], by_role={}, **owned(vars(parts["weight"]), weight))
    if inputs is not None and bits["activation"] < 16:
        problems = _misfits(parts, inputs)
        if problems:
            raise UserError(*problems)
        made["activation"] = replace(parts["activation"], **owned(vars(parts["activation"]), inputs))
        if parts.get("attention") is not None:
            made["attention"] = parts["attention"].in_format(inputs)
    return made


def _misfits(parts: Mapping[str, Any], name: str) -> list[str]:
    """Why inputs cannot have a named format, one sentence each."""
    found, named = list[str](), NAMED[name]
    own = f"each block of {named.block}" if named.block is not None else "each row"
    at_run_time = named.block is not None or named.rows
    if parts["activation"].regions.roles:
        found.append(
            f"bits.activation_format={name} has one scale for both signs, and activation.regions has two regions of "
            "integers; use activation/regions=none"
        )
    if at_run_time and isinstance(parts["activation"], StaticActivation):
        found.append(
            f"bits.activation_format={name} finds the scale of {own} at run time, and this activation "
            "has static ranges; use activation=token, or bits=fp8, which goes with static ranges"
        )
    attention = parts.get("attention")
    if attention is not None and not hasattr(attention, "in_format"):
        found.append(f"bits.activation_format={name}: this attention knows no formats; use attention=none or dynamic")
    elif at_run_time and attention is not None and attention.needs_calibration:
        found.append(
            f"bits.activation_format={name} finds the scale of {own} at run time, and this attention "
            "has static ranges; use attention=dynamic, or attention=none"
        )
    return found


def _unless_identity(spec: QuantSpec) -> QuantSpec | None:
    return None if spec.is_identity else spec
