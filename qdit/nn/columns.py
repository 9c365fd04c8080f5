"""A quantizer of an input that is two inputs side by side: some channels, and the others, have grids of their own.

The last layer of FLUX's single blocks reads an attention's output, of both signs, beside what a GELU made, which is
nearly positive: one scale a token serves neither.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ColumnParts(nn.Module):
    """Round the first channels of an input and the others by a quantizer each.

    Args:
        columns: how many channels the first quantizer is given.
        first, second: quantizers of inputs [..., channels].
    """

    has_codes = False  # integer products have one scale a row

    def __init__(self, columns: int, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.columns, self.first, self.second = columns, first, second

    def forward(self, x: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows channels"]:
        """Same shape and dtype as `x`."""
        return torch.cat([self.first(x[..., : self.columns]), self.second(x[..., self.columns :])], -1)
