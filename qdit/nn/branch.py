"""A layer's low-rank branch: what was split off its weight and stays in full precision beside it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Branch(nn.Module):
    """Add x downᵀ upᵀ to what a layer makes of the rounded x.

    Args:
        up: [out, rank].
        down: [rank, in], in the basis in which the layer's weight is.
        change: what brings the layer's input into that basis at run time; None where nothing has to. It is carried out
            for the branch once more; a kernel would share it, and the ledger counts it once.
        dtype: of the inputs.
    """

    up: Tensor
    down: Tensor

    def __init__(
        self,
        up: Float[Tensor, "out rank"],
        down: Float[Tensor, "rank in"],
        change: nn.Module | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.register_buffer("up", up.to(dtype))
        self.register_buffer("down", down.to(dtype))
        self.change = change

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The branch's output for an input that is not rounded."""
        changed = x if self.change is None else self.change(x)
        return F.linear(F.linear(changed, self.down), self.up)
