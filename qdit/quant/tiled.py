"""A weight in the tiles that the compiled kernel (`qdit.quant.native`) reads.

Codes of 4 bits or fewer stay two a byte, and the kernel unpacks them a tile at a time.
"""

import ctypes

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from qdit.quant import native
from qdit.quant.integers import Codes
from qdit.quant.native import Product, place

COLUMNS, FOUR = 32, 4  # a tile's outputs, and the channels that one instruction adds up


class Tiled:
    """A weight whose product the kernel computes.

    Args:
        weight: its codes.
        parts: equal parts of the channels within which weight and input have one scale each.
    """

    def __init__(self, weight: Codes, parts: int) -> None:
        self.shape, self.parts, self.groups = weight.integers.shape, parts, weight.groups
        out, channels = self.shape
        integers = weight.integers.new_zeros(out + -out % COLUMNS, channels)
        integers[:out] = weight.integers
        rows = integers.view(len(integers), parts, -1)
        self.sums = rows.sum(-1, dtype=torch.int32).T.float().contiguous()
        low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
        packs = int((high.short() - low).amax()) < 16
        self.lowest = low[..., 0].T.contiguous() if packs else None
        tiles = (rows - low if packs else rows).view(-1, COLUMNS, channels // FOUR, FOUR).transpose(1, 2)
        self.tiles = _halved(tiles) if packs else tiles.contiguous()
        self.scale = self._wide(weight.scale)
        self.offset = None if weight.offset is None else self._wide(weight.offset)

    @staticmethod
    def fits(weight: Codes, parts: int) -> bool:
        """Whether the kernel can do these."""
        return weight.integers.shape[1] // parts % FOUR == 0 and native.library() is not None

    def _wide(self, numbers: Float[Tensor, "out groups"]) -> Float[Tensor, "parts wide"]:
        wide = numbers.new_zeros(self.parts, self.sums.shape[1])
        wide[:, : self.shape[0]] = numbers.T.repeat_interleave(self.parts // self.groups, 0)
        return wide

    def codes(self) -> Int8[Tensor, "out channels"]:
        """The weight's integers."""
        tiles = self.tiles if self.lowest is None else torch.cat([self.tiles & 15, self.tiles >> 4], 2)
        integers = tiles.transpose(1, 2).reshape(-1, self.parts, self.shape[1] // self.parts)
        if self.lowest is not None:
            integers = integers + self.lowest.T.unsqueeze(-1)
        return integers.view(-1, self.shape[1])[: self.shape[0]].to(torch.int8)

    def tensors(self) -> list[Tensor]:
        """All that is held."""
        return [each for each in (self.tiles, self.lowest, self.sums, self.scale, self.offset) if each is not None]

    def product(self, x: Codes, bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        """See `qdit.quant.integers.product`."""
        (out, channels), rows = self.shape, len(x.integers)
        each = lambda t: t.expand(rows, -1).repeat_interleave(self.parts // x.groups, 1).contiguous()  # noqa: E731
        starts = self.scale.new_zeros(self.scale.shape[1])
        if bias is not None:
            starts[:out] = bias
        y = self.scale.new_empty(rows, out)
        tensors = {
            "x": x.integers.contiguous(),
            "x_scale": each(x.scale),
            "x_offset": None if x.offset is None else each(x.offset),
            "weight": self.tiles,
            "lowest": self.lowest,
            "w_scale": self.scale,
            "w_offset": self.offset,
            "w_sums": self.sums,
            "bias": starts,
            "y": y,
        }
        sizes = {"rows": rows, "out": out, "channels": channels, "groups": self.parts, "wide": len(starts)}
        about = Product(**sizes, **{name: place(tensor) for name, tensor in tensors.items()})
        kernel = native.library()
        assert kernel is not None
        kernel.qdit_product(ctypes.byref(about), ctypes.c_long(torch.get_num_threads()))
        return y


def _halved(tiles: Int8[Tensor, "tiles fours columns four"]) -> UInt8[Tensor, "tiles fours half four"]:
    """Codes from 0 to 15 two a byte: those of the first half of the columns in the low bits."""
    first, second = tiles.to(torch.uint8).chunk(2, 2)
    return (first | second << 4).contiguous()
