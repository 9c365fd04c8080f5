"""A quantization scheme: how weights, inputs (activations) and attentions are quantized, and with how many bits.

The parts of a fit are given this much, and no more, of the recipe that they belong to (`qdit.recipes`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qdit.activation import DynamicActivation, StaticActivation
from qdit.attention.base import AttentionPart
from qdit.checked import NEWER, Newer
from qdit.errors import UserError
from qdit.policies import LayerSpec
from qdit.quant.named import NAMED
from qdit.quant.spec import IDENTITY_BITS, QuantSpec
from qdit.weight import WeightGrid


@dataclass(frozen=True, kw_only=True, repr=False)
class Scheme(Newer):
    """The number formats of weights, inputs and operands of attentions."""

    weight: WeightGrid
    activation: DynamicActivation | StaticActivation
    weight_bits: int
    activation_bits: int
    attention: AttentionPart | None = None
    """Quantizes queries, keys, values and probabilities; None leaves attentions in full precision."""
    weight_format: str | None = field(default=None, metadata=NEWER)
    """The named format (`qdit.quant.named`) that weights were put into; None: the grid is the recipe's own."""
    activation_format: str | None = field(default=None, metadata=NEWER)
    """That of inputs and operands."""

    @property
    def blocks(self) -> dict[str, int]:
        """The group sizes that the formats of weights and inputs own, by what a format is called."""
        layer, found = self.layer, dict[str, int]()
        for name, spec in ((self.weight_format, layer.weight), (self.activation_format, layer.activation)):
            if spec is None or spec.group_size is None:
                continue
            if name is not None and NAMED[name].block is not None:
                found[name] = spec.group_size
            elif spec.scale is not None:
                found[f"{spec.grid} with scale={spec.scale}"] = spec.group_size
        return found

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

    def misfit_grids(self) -> list[str]:
        """The grids that cannot be at these bits, one sentence each; they are seen without a model."""
        asked = {
            "weight": lambda: self.weight.spec(self.weight_bits),
            "activation": lambda: self.activation.spec(self.activation_bits),
            "attention": lambda: self.operands,
        }
        found = list[str]()
        for key, ask in asked.items():
            try:
                ask()
            except UserError as error:
                found += [f"{key}: {problem}" for problem in error.problems]
        return found


def in_formats(parts: Mapping[str, Any], bits: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a recipe in the number formats that a config's `bits` name, if it names any.

    A format owns its block, its scale and its symmetry, and takes the place of a part's granularity, group size and
    grid; one without blocks (`fp8`) keeps the recipe's rows, static ranges and attentions too.

    Raises:
        UserError: parts cannot have the format, one sentence each.
    """
    made, problems = dict(parts), list[str]()
    for key, operand in {"weight": "weight", "activation": "activation", "attention": "activation"}.items():
        name, part = bits.get(f"{operand}_format"), parts.get(key)
        if name is None or part is None or bits[operand] == IDENTITY_BITS:
            continue
        if not hasattr(part, "in_format"):  # of another package, and older than formats
            problems.append(f"bits.{operand}_format={name}: this {key} knows no number formats; use another, or null")
            continue
        try:
            made[key] = part.in_format(name)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return made


def _unless_identity(spec: QuantSpec) -> QuantSpec | None:
    return None if spec.is_identity else spec
