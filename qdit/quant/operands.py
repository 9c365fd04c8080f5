"""A weight as its integer products read it: rearranged once, and nothing else kept beside it.

Three forms, with the same bits for the same codes:

* `Tiled`: a compiled kernel (`qdit.quant.native`), which scales sums where they arise and reads codes of 4 bits two a
  byte;
* `Packed`: oneDNN's, where there is no such kernel; of groups, one product after the other;
* `Plain`: torch's `_int_mm`, on accelerators.

oneDNN multiplies unsigned inputs by signed weights; signed inputs fall to a reference kernel a thousand times slower.
So codes of inputs are shifted by 128, and oneDNN is told so as their zero point: its sums are of integers, and exact.
"""

from math import lcm
from typing import Protocol

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from qdit.quant.affine import Affine
from qdit.quant.grid import Rounded
from qdit.quant.integers import SIDE, Codes, product, rescaled, weight_codes
from qdit.quant.tiled import Tiled


class Form(Protocol):
    """A weight in the form that some kernel reads."""

    def codes(self) -> Int8[Tensor, "out channels"]:
        """The weight's integers."""
        ...

    def scales(self) -> Float[Tensor, "out groups"]:
        """The weight's scales, as they were given."""
        ...

    def tensors(self) -> list[Tensor]:
        """All that is held."""
        ...

    def product(
        self, x: Codes, bias: Float[Tensor, " out"] | None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "rows out"]:
        """See `qdit.quant.integers.product`; in a dtype, to which the sums in float32 are rounded."""
        ...


class Plain:
    """A weight as torch's own integer product reads it."""

    def __init__(self, weight: Codes) -> None:
        self.weight = weight

    def codes(self) -> Int8[Tensor, "out channels"]:
        """See `Form`."""
        return self.weight.integers

    def scales(self) -> Float[Tensor, "out groups"]:
        """See `Form`."""
        return self.weight.scale

    def tensors(self) -> list[Tensor]:
        """See `Form`."""
        return [t for t in (self.weight.integers, self.weight.scale, self.weight.offset) if t is not None]

    def product(
        self, x: Codes, bias: Float[Tensor, " out"] | None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "rows out"]:
        """See `Form`."""
        return product(x, self.weight, bias).to(dtype)


class Packed:
    """A weight as oneDNN's integer product reads it.

    Args:
        weight: its codes.
        parts: equal parts of the channels within which weight and input have one scale each.
    """

    def __init__(self, weight: Codes, parts: int) -> None:
        self.scale, self.offset, self.groups = weight.scale, weight.offset, weight.groups
        self.packed = [
            torch.ops.onednn.qlinear_prepack(weight.group(n, parts).contiguous(), None) for n in range(parts)
        ]
        self.sums = torch.stack([weight.part_sums(number, parts) for number in range(parts)])
        self.ones = weight.scale.new_ones(len(weight.integers))
        self.zeros = torch.zeros(len(self.ones), dtype=torch.long)

    def codes(self) -> Int8[Tensor, "out channels"]:
        """See `Form`."""
        return torch.cat([packed.to_dense().T for packed in self.packed], 1)

    def scales(self) -> Float[Tensor, "out groups"]:
        """See `Form`."""
        return self.scale

    def tensors(self) -> list[Tensor]:
        """See `Form`."""
        others = (self.scale, self.offset, self.sums, self.ones, self.zeros)
        return self.packed + [each for each in others if each is not None]

    def part_sums(self, number: int, of: int) -> Float[Tensor, " out"]:
        """See `qdit.quant.integers.Codes`."""
        return self.sums[number]

    def product(
        self, x: Codes, bias: Float[Tensor, " out"] | None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "rows out"]:
        """See `Form`."""
        parts = len(self.packed)
        sums = lambda number: self._sums(x.group(number, parts), self.packed[number])  # noqa: E731
        return rescaled(x, self, bias, parts, sums).to(dtype)

    def _sums(self, integers: Int8[Tensor, "rows part"], packed: Tensor) -> Float[Tensor, "rows out"]:
        """Σ a b."""
        shifted = integers.view(torch.uint8).bitwise_xor(SIDE)
        options = (
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )  # no bias; of the output scale, zero point, dtype, and after
        return torch.ops.onednn.qlinear_pointwise(shifted, 1.0, SIDE, packed, self.ones, self.zeros, *options)


class Operand:
    """A rounded weight, resident in the form in which it is multiplied; its codes can be had back from that.

    Args:
        rounded: the weight, of integers.
        groups: of channels in which inputs have a scale each.
    """

    def __init__(self, rounded: Rounded, groups: int) -> None:
        grid = rounded.grid
        assert isinstance(grid, Affine)
        self.spec, self.groups, self.rows = rounded.spec, groups, len(grid.scale)
        self.low, self.high = grid.low, grid.high
        weight = weight_codes(rounded)
        self.centred = weight.offset is None
        self.form = formed(weight, lcm(groups, weight.groups))
        # What the form has is not held twice; one number for the whole tensor stands there for every row.
        self.scale = grid.scale if self.rows == 1 or grid.scale.dtype != torch.float32 else None
        self.zero_point, self.whole = smallest(grid.zero_point), grid.zero_point.dtype

    def product(
        self, x: Codes, bias: Float[Tensor, " out"] | None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "rows out"]:
        """See `Form`."""
        return self.form.product(x, bias, dtype)

    def __reduce__(self) -> tuple[type, tuple[Rounded, int]]:
        """A copy is packed anew: torch copies no tensor of oneDNN."""
        return Operand, (self.rounded(), self.groups)

    @property
    def scales(self) -> int:
        """Of each row of the weight."""
        return max(1, self.rows // len(self.form.scales()))

    def rounded(self) -> Rounded:
        """The weight as it was given."""
        integers, zero_point = self.form.codes(), self.zero_point.to(self.whole)
        scale = self.form.scales().reshape(-1, 1).contiguous() if self.scale is None else self.scale
        grid = Affine(scale, zero_point, self.low, self.high)
        shift = zero_point if self.centred else zero_point.new_full((1, 1), SIDE)
        rows = integers.reshape(self.rows, -1).short() + shift.short()
        codes = rows.view(integers.shape).to(torch.int8 if grid.signed else torch.uint8)
        return Rounded(codes, grid, self.spec)

    def tensors(self) -> list[Tensor]:
        """All that are held."""
        return [*self.form.tensors(), self.zero_point, *([] if self.scale is None else [self.scale])]


def smallest(numbers: Float[Tensor, "rows 1"]) -> Tensor:
    """Whole numbers in the smallest type that gives their bits back (-0.0 has none but its own)."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[numbers.element_size()]
    for kind in (torch.uint8, torch.int8, torch.int16):
        small = numbers.to(kind)
        if torch.equal(small.to(numbers.dtype).view(bits), numbers.contiguous().view(bits)):
            return small
    return numbers


def formed(weight: Codes, parts: int) -> Form:
    """A weight in the form of the fastest kernel that there is for it."""
    if weight.integers.device.type != "cpu":
        return Plain(weight)
    return Tiled(weight, parts) if Tiled.fits(weight, parts) else Packed(weight, parts)
