"""A weight in the tiles that the compiled kernel (`qdit.quant.native`) reads."""

import ctypes

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from qdit.quant import native
from qdit.quant.integers import Codes
from qdit.quant.native import Product, place

COLUMNS, FOUR = 32, 4  # a tile's outputs, and the channels that one instruction adds up


class Tiled:
    """A weight whose product the kernel computes, one byte a code.

    Args:
        weight: its codes.
        parts: equal parts of the channels within which weight and input have one scale each.
    """

    def __init__(self, weight: Codes, parts: int) -> None:
        self.shape, self.parts, self.groups = weight.integers.shape, parts, weight.groups
        out, channels = self.shape
        integers = weight.integers.new_zeros(out + -out % COLUMNS, channels)
        integers[:out] = weight.integers
        tiles = integers.view(-1, COLUMNS, channels // FOUR, FOUR)
        self.tiles = tiles.transpose(1, 2).contiguous()
        self.sums = integers.view(len(integers), parts, -1).sum(-1, dtype=torch.int32).T.float().contiguous()
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
        return self.tiles.transpose(1, 2).reshape(-1, self.shape[1])[: self.shape[0]]

    def tensors(self) -> list[Tensor]:
        """All that is held."""
        return [each for each in (self.tiles, self.sums, self.scale, self.offset) if each is not None]

    def product(self, x: Codes, bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        """See `qdit.quant.integers.product`."""
        (out, channels), rows = self.shape, len(x.integers)
        each = lambda t: t.expand(rows, -1).repeat_interleave(self.parts // x.groups, 1).contiguous()  # noqa: E731
        starts = self.scale.new_zeros(self.scale.shape[1])
        if bias is not None:
            starts[:out] = bias
        y = self.scale.new_empty(rows, out)
        offset = None if x.offset is None else each(x.offset)
        tensors = (
            x.integers.contiguous(),
            each(x.scale),
            offset,
            self.tiles,
            self.scale,
            self.offset,
            self.sums,
            starts,
            y,
        )
        about = Product(rows, out, channels, self.parts, len(starts), *map(place, tensors))
        kernel = native.library()
        assert kernel is not None
        kernel.qdit_product(ctypes.byref(about), ctypes.c_long(torch.get_num_threads()))
        return y
