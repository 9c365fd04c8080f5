"""What a fit asks of an attention part; what runs then is `qdit.nn.attention.Attend`."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from qdit.activation import TimeGroups
from qdit.nn.clock import Clock
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import Groups


class AttentionPart(Protocol):
    """How the operands of attentions are quantized. Config only: the data arrive as arguments."""

    @property
    def needs_calibration(self) -> bool:
        """Whether `quantizer` needs values."""
        ...

    def specs(self, bits: int, time: TimeGroups) -> dict[str, QuantSpec]:
        """The spec of each operand (`qdit.model.base.OPERANDS`) that is quantized where inputs have `bits` bits.

        Args:
            bits: of inputs.
            time: groups of timesteps, of operands too.
        """
        ...

    def in_format(self, name: str) -> "AttentionPart":
        """The same in a named number format (`qdit.quant.named`).

        Raises:
            UserError: it cannot have the format.
        """
        ...

    def quantizer(
        self, operand: str, spec: QuantSpec, values: Sequence[Tensor] | None, groups: Groups, clock: Clock
    ) -> nn.Module:
        """The module that rounds one operand [B, heads, rows, channels] and keeps its shape.

        Args:
            operand: which one (`qdit.model.base.OPERANDS`).
            spec: of `specs`.
            values: a sample of its values over the calibration data for each group of timesteps, extremes included,
                [n], or [heads, n] where the granularity is `head`; None where the spec is dynamic.
            groups: of timesteps.
            clock: shows the timestep.
        """
        ...
