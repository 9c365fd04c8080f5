"""Static quantizers of attention operands: uniform for q, k and v, with a code-book of its own for probabilities.

Queries (after their scaling), keys and values have the bits of inputs and one grid per tensor or per head. Ranges are
calibrated as those of static inputs are: on the full-precision network, transformed if the recipe has a transform, and
by group of timesteps where the activations' option has groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from qdit.activation import TimeGroups
from qdit.attention.balance import both_rounded
from qdit.attention.probabilities import FloatProbabilities, Probabilities, UnsignedProbabilities
from qdit.checked import NEWER, Checked, Newer
from qdit.errors import UserError
from qdit.model.base import Operand
from qdit.nn.clock import Clock
from qdit.nn.quantizers import quantizer_of, static_quantizer
from qdit.quant.grid import covering
from qdit.quant.named import NAMED, at_bits, at_run_time
from qdit.quant.ranges import Range, check_rule
from qdit.quant.spec import IDENTITY_BITS, GridName, QuantSpec
from qdit.quant.time_groups import Groups


@dataclass(frozen=True, kw_only=True, repr=False)
class StaticAttention(Newer, Checked):
    """Static quantization of an attention's operands.

    Args:
        operands: which are quantized: q, k, v, probs.
        granularity: of q, k and v: `tensor` or `head`.
        grid: of q, k and v; see `QuantSpec`.
        range: the rule that finds their ranges from the calibration values.
        probabilities: how probabilities are rounded.
        balance: whether channels of queries and keys are balanced (`qdit.attention.balance`).

    Raises:
        UserError: an operand is unknown, or bits are out of range; or only one of two operands would be balanced.
    """

    operands: list[Operand]
    granularity: Literal["tensor", "head"]
    grid: GridName
    range: Range
    probabilities: Probabilities
    balance: bool = field(default=False, metadata=NEWER)
    needs_calibration = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rule(self.range, self.grid)
        self.spec("probs", 8)
        self.spec("q", 8)
        if self.balance:
            both_rounded(self.operands)

    def spec(self, operand: str, bits: int, time_groups: int | None = None) -> QuantSpec:
        """The spec of one operand where inputs have `bits` bits.

        Raises:
            UserError: bits are out of range.
        """
        granularity, grid = self.granularity, self.grid
        if operand == "probs":
            probabilities = self.probabilities
            bits = bits if probabilities.bits is None else probabilities.bits
            granularity, grid = "tensor", probabilities.grid
        grid = at_bits(grid, bits)
        return QuantSpec(bits=bits, granularity=granularity, grid=grid, dynamic=False, time_groups=time_groups)

    def specs(self, bits: int, time: TimeGroups) -> dict[str, QuantSpec]:
        """See `AttentionPart`; nothing is quantized where inputs are not (16 bits)."""
        made = {o: self.spec(o, bits, time.count(o)) for o in self.operands} if bits < IDENTITY_BITS else {}
        return {operand: spec for operand, spec in made.items() if not spec.is_identity}

    def in_format(self, name: str) -> "StaticAttention":
        """The same in a named format without blocks (`qdit.quant.named`); probabilities have the range that they have.

        Raises:
            UserError: the format finds its scales at run time, or probabilities have a code-book of their own.
        """
        own, problems = self.probabilities, at_run_time(name, "attention", "attention=dynamic, or attention=none")
        if not isinstance(own, UnsignedProbabilities | FloatProbabilities):
            problems.append(
                f"bits.activation_format={name}: {type(own).__name__} are a code-book of their own; use "
                "attention/probabilities=float"
            )
            raise UserError(*problems)
        if problems:
            raise UserError(*problems)
        probabilities = FloatProbabilities(bits=own.bits, renormalise=own.renormalise, range=own.range)
        return replace(self, grid=NAMED[name].grid, probabilities=probabilities)  # type: ignore[arg-type]

    def quantizer(
        self, operand: str, spec: QuantSpec, values: Sequence[Tensor] | None, groups: Groups, clock: Clock
    ) -> nn.Module:
        """See `AttentionPart`; `values` are needed."""
        assert values is not None
        if operand != "probs":
            rows = [sample.reshape(-1, sample.shape[-1]) for sample in values]
            return quantizer_of(spec, [covering(r, *self.range(r, spec), spec) for r in rows], groups, clock)
        numbers = torch.stack([self.probabilities.numbers(sample, spec) for sample in values])
        return static_quantizer(spec, self.probabilities.rounds(spec.bits), numbers.unsqueeze(1), groups, clock)
