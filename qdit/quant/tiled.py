"""A weight in the tiles that the compiled kernel (`qdit.quant.native`) reads.

Codes of 4 bits or fewer stay two a byte, and the kernel unpacks them a tile at a time.
"""

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from qdit.quant import kernels, native
from qdit.quant.integers import Codes

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

    def scales(self) -> Float[Tensor, "out groups"]:
        """The weight's scales, as they were given."""
        return self.scale[:: self.parts // self.groups, : self.shape[0]].T

    def tensors(self) -> list[Tensor]:
        """All that is held."""
        return [each for each in (self.tiles, self.lowest, self.sums, self.scale, self.offset) if each is not None]

    def product(
        self, x: Codes, bias: Float[Tensor, " out"] | None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "rows out"]:
        """See `qdit.quant.operands.Form`."""
        made = dtype if dtype in kernels.DTYPES else torch.float32
        mine = None if bias is None else bias.float()
        own = self.tiles, self.lowest, self.scale, self.offset, self.sums
        return torch.ops.qdit.product(x.integers, x.scale, x.offset, *own, mine, self.shape[0], made).to(dtype)


def _halved(tiles: Int8[Tensor, "tiles fours columns four"]) -> UInt8[Tensor, "tiles fours half four"]:
    """Codes from 0 to 15 two a byte: those of the first half of the columns in the low bits."""
    first, second = tiles.to(torch.uint8).chunk(2, 2)
    return (first | second << 4).contiguous()
