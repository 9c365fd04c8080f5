"""Integer matrix products: int8 operands, 32-bit accumulation, scales and zero points applied afterwards.

Each group of channels in a row of a tensor holds the values s (a - d): int8 integers a, with one scale s and one offset
(zero point) d per group. With the weight's t (b - e), a group of n channels contributes

    s t (Σ a b  -  d Σ b  -  e Σ a  +  n d e)

to an output; Σ b is known beforehand. The products Σ a b run in the machine's int8 instructions; float32 holds the sums
exactly up to 2²⁴, which 1,024 channels of 8 bits never exceed. So the result differs only in the last bits from that of
simulated quantization, which multiplies dequantized values in floating point.

Source: Jacob et al., arXiv 1712.05877, §2.3. Left out: packed 4-bit products, which torch has no kernel for; codes of
fewer than 8 bits are multiplied as int8.
"""

from dataclasses import dataclass
from functools import cached_property
from math import lcm

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from qdit.quant.affine import Affine
from qdit.quant.grid import Rounded

SIDE = 128  # int8 holds -128 to 127
CUDA_ROWS, CUDA_MULTIPLE = 17, 8  # what torch's int8 product on CUDA asks of the shapes


@dataclass(frozen=True)
class Codes:
    """Rows of values s (a - d): int8 codes with one scale and offset per row and group of channels."""

    integers: Int8[Tensor, "rows channels"]
    scale: Float[Tensor, "rows groups"]
    """Or [1, groups] for all rows."""
    offset: Float[Tensor, "rows groups"] | None
    """Whole numbers, of as many rows; None is 0."""

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self.scale.shape[1]

    @cached_property
    def sums(self) -> Float[Tensor, "rows groups"]:
        """Σ a of each group."""
        return _summed(self.integers.unflatten(1, (self.groups, -1)))

    def group(self, number: int, of: int) -> Int8[Tensor, "rows part"]:
        """The integers of one of so many equal parts of the channels."""
        part = self.integers.shape[1] // of
        return self.integers[:, number * part : (number + 1) * part]


def encoded(
    x: Float[Tensor, "rows channels"], scale: Tensor, zero_point: Tensor, low: int, high: int, grid: str
) -> tuple[Int8[Tensor, "rows channels"], Tensor | None]:
    """The integers a and the offset d of values on a grid; scale and zero point broadcast against `x`.

    Where code minus zero point fits into int8, that difference is a, and no offset is left (d is None). Zero points of
    `asymmetric_free` may be any number, so they always keep an offset.

    >>> a, d = encoded(torch.tensor([[-0.3, 0.2, 9.0]]), torch.tensor(0.1), torch.tensor(3.0), 0, 15, "asymmetric")
    >>> a, d
    (tensor([[-3,  2, 12]], dtype=torch.int8), None)
    """
    y = x / scale
    y.round_().add_(zero_point).clamp_(low, high)
    if low < 0 or (high < SIDE and grid != "asymmetric_free"):  # of signed codes the zero point is 0
        return y.sub_(zero_point).to(torch.int8), None
    shift = SIDE if high >= SIDE else 0
    return y.sub_(shift).to(torch.int8), zero_point - shift


def weight_codes(rounded: Rounded) -> Codes:
    """A weight [out, channels] as an operand with as many groups as each of its rows has scales.

    Where code minus zero point fits into int8, that difference is stored, so that no correction is left for run time.
    """
    grid, out = rounded.grid, len(rounded.codes)
    assert isinstance(grid, Affine), "only integers have codes that can be multiplied"
    groups = max(1, len(grid.scale) // out)
    scale, zero_point = (t.float().expand(out * groups, 1).reshape(out, groups) for t in (grid.scale, grid.zero_point))
    codes = rounded.codes.unflatten(1, (groups, -1)).float()
    centred = codes - zero_point.unsqueeze(-1)
    if centred.amin() >= -SIDE and centred.amax() < SIDE:
        return Codes(centred.flatten(1).to(torch.int8), scale, None)
    return Codes((codes - SIDE).flatten(1).to(torch.int8), scale, zero_point - SIDE)


def multiplies(rows: int, weight: Codes, groups: int) -> bool:
    """Whether the device has an integer matrix product for these shapes."""
    out, channels = weight.integers.shape
    if weight.integers.device.type == "cpu":
        return True
    part = channels // lcm(groups, weight.groups)
    return rows >= CUDA_ROWS and part % CUDA_MULTIPLE == 0 and out % CUDA_MULTIPLE == 0


def product(x: Codes, weight: Codes, bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
    """x̂ Ŵᵀ + bias in float32; the loop runs over parts of the channels within which both sides have one scale."""
    groups = lcm(x.groups, weight.groups)
    part = weight.integers.shape[1] // groups
    start, y = bias.float() if bias is not None else x.scale.new_zeros(()), None
    for number in range(groups):
        mine, its = number * x.groups // groups, number * weight.groups // groups
        operands = x.group(number, groups), weight.group(number, groups).t()
        sums = torch._int_mm(*operands).float()  # pyright: ignore[reportPrivateImportUsage]
        if x.offset is not None:
            sums.addcmul_(x.offset[:, mine, None], _sums(weight, number, groups), value=-1)
        if weight.offset is not None:
            theirs = _sums(x, number, groups).unsqueeze(1)
            if x.offset is not None:
                theirs = theirs - part * x.offset[:, mine, None]
            sums.addcmul_(theirs, weight.offset[:, its], value=-1)
        sums.mul_(x.scale[:, mine, None])
        y = torch.addcmul(start, sums, weight.scale[:, its]) if y is None else y.addcmul_(sums, weight.scale[:, its])
    assert y is not None
    return y


def _sums(codes: Codes, number: int, groups: int) -> Float[Tensor, " rows"]:
    """Σ a over one of `groups` equal parts of the channels."""
    if codes.groups == groups:
        return codes.sums[:, number]
    return _summed(codes.group(number, groups))


def _summed(integers: Int8[Tensor, "*rows part"]) -> Float[Tensor, "*rows"]:
    return integers.float().sum(-1)  # exact below 2²⁴, and several times faster than a sum of integers
