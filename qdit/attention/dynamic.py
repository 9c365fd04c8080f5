"""Dynamic quantization of attention operands: each token of a head, or block of its values, has a scale of its own.

For formats whose scales belong to blocks (MX, NVFP4), as SageAttention3 (arXiv 2505.11594) has them: blocks lie along
the dimension over which a product sums, which is the head's width for queries and keys, and the tokens for values and
probabilities. Left out: what it subtracts from queries and keys, and its two levels of probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from qdit.activation import TimeGroups
from qdit.attention.balance import both_rounded
from qdit.checked import NEWER, Checked, Newer
from qdit.errors import UserError
from qdit.model.base import Operand
from qdit.nn.clock import Clock
from qdit.nn.quantizers import OperandQuantizer, SummingToOne
from qdit.quant.named import at_bits, owned
from qdit.quant.spec import IDENTITY_BITS, Granularity, GridName, QuantSpec, Scale
from qdit.quant.time_groups import Groups


@dataclass(frozen=True, kw_only=True, repr=False)
class DynamicAttention(Newer, Checked):
    """Dynamic quantization of an attention's operands, all at the inputs' bits.

    Args:
        operands: which are quantized: q, k, v, probs.
        granularity, group_size, scale: see `QuantSpec`; a row is a token of a head, or a channel of its values.
        grid: see `QuantSpec`; `float` is the usual floating-point format of the bits.
        renormalise: whether each query's rounded probabilities are divided by their sum (in none of the papers).
        balance: whether channels of queries and keys are balanced (`qdit.attention.balance`), for which calibration
            data are needed.

    Raises:
        UserError: an operand is unknown, a whole tensor is to have one scale, or only one of two operands would be
            balanced.
    """

    operands: list[Operand]
    granularity: Granularity
    grid: GridName
    group_size: int | None = None
    scale: Scale | None = None
    renormalise: bool = field(default=False, metadata=NEWER)
    balance: bool = field(default=False, metadata=NEWER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity == "tensor":
            raise UserError(
                "attention.granularity=tensor with ranges that are found at run time gives all samples of a batch one "
                "scale, so that results depend on batch_size; use attention.granularity=row, or attention=uniform, "
                "whose ranges are calibrated"
            )
        if self.balance:
            both_rounded(self.operands)

    @property
    def needs_calibration(self) -> bool:
        """See `AttentionPart`."""
        return self.balance

    def specs(self, bits: int, time: TimeGroups) -> dict[str, QuantSpec]:
        """See `AttentionPart`; nothing is quantized where inputs are not (16 bits)."""
        rows: dict[str, Any] = {"granularity": self.granularity, "group_size": self.group_size}
        spec = QuantSpec(bits=bits, grid=at_bits(self.grid, bits), scale=self.scale, **rows)
        return dict.fromkeys(self.operands, spec) if bits < IDENTITY_BITS else {}

    def in_format(self, name: str) -> "DynamicAttention":
        """The same in a named format (`qdit.quant.named`)."""
        return replace(self, **owned(vars(self), name))

    def quantizer(
        self, operand: str, spec: QuantSpec, values: Sequence[Tensor] | None, groups: Groups, clock: Clock
    ) -> nn.Module:
        """See `AttentionPart`; no values are needed."""
        own = OperandQuantizer(spec, along_tokens=operand == "v")
        return SummingToOne(own) if self.renormalise and operand == "probs" else own
