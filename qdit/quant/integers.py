"""Integer matrix products: int8 operands, 32-bit accumulation, scales and zero points applied afterwards.

Each group of channels in a row of a tensor holds the values s (a - d): int8 integers a, with one scale s and one offset
(zero point) d per group. With the weight's t (b - e), a group of n channels contributes

    s t (Σ a b  -  d Σ b  -  e Σ a  +  n d e)

to an output; Σ b is known beforehand. The products Σ a b run in the machine's int8 instructions; float32 holds the sums
exactly up to 2²⁴, which 1,024 channels of 8 bits never exceed. So the result differs only in the last bits from that of
simulated quantization, which multiplies dequantized values in floating point.

Source: Jacob et al., arXiv 1712.05877, §2.3. Left out: products of 4-bit codes, which torch has no kernel for; codes of
fewer than 8 bits are multiplied as int8. `product` is the plain way; `qdit.quant.operands` has the faster ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import lcm
from typing import Protocol

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from qdit.quant import kernels
from qdit.quant.affine import Affine, affine, code_range
from qdit.quant.grid import Rounded
from qdit.quant.spec import QuantSpec

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

    def part_sums(self, number: int, of: int) -> Float[Tensor, " rows"]:
        """Σ a over one of so many equal parts of the channels."""
        return self.sums[:, number] if self.groups == of else _summed(self.group(number, of))


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
    shift = shift_of(low, high, grid)
    integers = kernels.encoded(x, scale, zero_point, low, high, shift)
    if integers is None:
        y = x / scale
        y.round_().add_(zero_point).clamp_(low, high)
        integers = y.sub_(zero_point if shift is None else shift).to(torch.int8)
    return integers, None if shift is None else zero_point - shift


def shift_of(low: int, high: int, grid: str) -> int | None:
    """What codes are less than those of their grid, to be int8; None: by their zero point, and no offset is left."""
    # Of signed codes the zero point is 0.
    return None if low < 0 or (high < SIDE and grid != "asymmetric_free") else SIDE if high >= SIDE else 0


def covered(rows: Float[Tensor, "rows n"], spec: QuantSpec) -> tuple[Int8[Tensor, "rows n"], Tensor, Tensor | None]:
    """The integers a, scales [rows, 1] and offsets d [rows, 1] of rows on the grids of their own values.

    >>> covered(torch.tensor([[-1.0, 0.0, 2.0]]), QuantSpec(bits=2))
    (tensor([[-1,  0,  2]], dtype=torch.int8), tensor([[1.]]), None)
    """
    low, high = code_range(spec)
    shift = shift_of(low, high, spec.grid)
    if kernels.reads(rows):
        integers, scale, zero_point = kernels.covered(rows, spec.grid, low, high, shift)
        return integers, scale, None if shift is None else zero_point - shift
    rows = rows.float()
    grid = affine(rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True), spec)
    integers, offset = encoded(rows, grid.scale, grid.zero_point, low, high, spec.grid)
    return integers, grid.scale, offset


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


def multiplies(x: Codes, out: int, channels: int, groups: int) -> bool:
    """Whether the device has a product of `x` and a weight [out, channels] with so many groups in a row."""
    if x.integers.device.type == "cpu":
        return True
    part = channels // lcm(x.groups, groups)
    return len(x.integers) >= CUDA_ROWS and part % CUDA_MULTIPLE == 0 and out % CUDA_MULTIPLE == 0


class Weight(Protocol):
    """What `rescaled` asks of a weight besides its products: the fields of `Codes`, and `part_sums`."""

    @property
    def scale(self) -> Float[Tensor, "out groups"]:
        """See `Codes`."""
        ...

    @property
    def offset(self) -> Float[Tensor, "out groups"] | None:
        """See `Codes`."""
        ...

    @property
    def groups(self) -> int:
        """See `Codes`."""
        ...

    def part_sums(self, number: int, of: int) -> Float[Tensor, " out"]:
        """Σ b over one of so many equal parts of the channels."""
        ...


def product(x: Codes, weight: Codes, bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
    """x̂ Ŵᵀ + bias in float32, by torch's own product of integers."""
    parts = lcm(x.groups, weight.groups)

    def sums(number: int) -> Tensor:
        operands = x.group(number, parts), weight.group(number, parts).t()
        return torch._int_mm(*operands).float()  # pyright: ignore[reportPrivateImportUsage]

    return rescaled(x, weight, bias, parts, sums)


def rescaled(
    x: Codes,
    weight: Weight,
    bias: Float[Tensor, " out"] | None,
    parts: int,
    sums: Callable[[int], Float[Tensor, "rows out"]],
) -> Float[Tensor, "rows out"]:
    """x̂ Ŵᵀ + bias in float32, of the products of integers.

    Args:
        x: the input.
        weight: the other operand.
        bias: of the layer.
        parts: equal parts of the channels within which both sides have one scale; the loop runs over them.
        sums: of a part, Σ a b in a new tensor.
    """
    part = x.integers.shape[1] // parts
    start, y = bias.float() if bias is not None else x.scale.new_zeros(()), None
    for number in range(parts):
        mine, its = number * x.groups // parts, number * weight.groups // parts
        found = sums(number)
        if x.offset is not None:
            found.addcmul_(x.offset[:, mine, None], weight.part_sums(number, parts), value=-1)
        if weight.offset is not None:
            theirs = x.part_sums(number, parts).unsqueeze(1)
            if x.offset is not None:
                theirs = theirs - part * x.offset[:, mine, None]
            found.addcmul_(theirs, weight.offset[:, its], value=-1)
        found.mul_(x.scale[:, mine, None])
        y = torch.addcmul(start, found, weight.scale[:, its]) if y is None else y.addcmul_(found, weight.scale[:, its])
    assert y is not None
    return y


def _summed(integers: Int8[Tensor, "*rows part"]) -> Float[Tensor, "*rows"]:
    return integers.float().sum(-1)  # exact below 2²⁴, and several times faster than a sum of integers
