"""Uniform static quantizers of attention operands, one grid per tensor (PTQ4DiT's release, arXiv 2405.16005).

Queries (after their scaling), keys and values have the bits of inputs; probabilities have bits of their own and zero
point 0. One range rule is used for all four. In the release, ranges are taken with rounded weights in place; here they
are those of the full-precision network (`qdit.attention.static`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from qdit.activation import TimeGroups
from qdit.attention.probabilities import UnsignedProbabilities
from qdit.attention.static import StaticAttention
from qdit.checked import NEWER, Newer
from qdit.model.base import Operand
from qdit.nn.clock import Clock
from qdit.quant.ranges import Range
from qdit.quant.spec import GridName, QuantSpec
from qdit.quant.time_groups import Groups


@dataclass(frozen=True, kw_only=True, repr=False)
class UniformAttention(Newer):
    """Static per-tensor quantization of an attention's operands.

    Args:
        operands: which are quantized: q, k, v, probs.
        grid: of q, k and v; see `QuantSpec`. Probabilities have the grid `unsigned`.
        probability_bits: of the probabilities.
        range: the rule that finds a range from the calibration values.
        renormalise: whether each query's rounded probabilities are divided by their sum (not in the release).
        balance: see `StaticAttention`.

    Raises:
        UserError: see `StaticAttention`.
    """

    operands: list[Operand]
    grid: GridName
    probability_bits: int
    range: Range
    renormalise: bool = field(default=False, metadata=NEWER)
    balance: bool = field(default=False, metadata=NEWER)
    needs_calibration = True

    def __post_init__(self) -> None:
        """See `StaticAttention`."""
        _ = self.static

    @property
    def static(self) -> StaticAttention:
        """The `StaticAttention` of which this is a special case."""
        probabilities = UnsignedProbabilities(
            bits=self.probability_bits, renormalise=self.renormalise, range=self.range
        )
        return StaticAttention(
            operands=self.operands,
            granularity="tensor",
            grid=self.grid,
            range=self.range,
            probabilities=probabilities,
            balance=self.balance,
        )

    def specs(self, bits: int, time: TimeGroups) -> dict[str, QuantSpec]:
        """See `AttentionPart`."""
        return self.static.specs(bits, time)

    def in_format(self, name: str) -> StaticAttention:
        """See `StaticAttention`."""
        return self.static.in_format(name)

    def quantizer(
        self, operand: str, spec: QuantSpec, values: Sequence[Tensor] | None, groups: Groups, clock: Clock
    ) -> nn.Module:
        """See `AttentionPart`."""
        return self.static.quantizer(operand, spec, values, groups, clock)
