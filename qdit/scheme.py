"""A quantization scheme: how weights, inputs (activations) and attentions are quantized, and with how many bits.

The parts of a fit are given this much, and no more, of the recipe that they belong to (`qdit.recipes`).
"""

from dataclasses import dataclass

from qdit.activation import DynamicActivation, StaticActivation
from qdit.attention.base import AttentionPart
from qdit.policies import LayerSpec
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


def _unless_identity(spec: QuantSpec) -> QuantSpec | None:
    return None if spec.is_identity else spec
