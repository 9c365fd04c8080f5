"""The run-time part of transforms: changes of an input's basis (scale, shift, rotation), and low-rank branches."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Integer
from torch import Tensor, nn

from qdit.quant.hadamard import permuted, regular, rotate


class _ByChannel(nn.Module):
    """Hold a number for each channel of an input.

    Args:
        by: the numbers, [channels].
        dtype: of the inputs.
    """

    by: Tensor

    def __init__(self, by: Float[Tensor, " channels"], dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("by", by.to(dtype))


class Scale(_ByChannel):
    """Multiply an input [..., channels] by a vector at run time."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return x * self.by


class Shift(_ByChannel):
    """Add a vector to an input [..., channels] at run time."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return x + self.by


class Rotation(nn.Module):
    """Rotate an input [..., channels] at run time, in float32.

    Args:
        signs: ±1, [channels].
        block: channels that are mixed together; None mixes all.
    """

    signs: Tensor

    def __init__(self, signs: Int8[Tensor, " channels"], block: int | None) -> None:
        super().__init__()
        self.register_buffer("signs", signs)
        self.block = block

    def forward(self, x: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows channels"]:
        """Same shape and dtype as `x`."""
        return rotate(x.float() if x.dtype != torch.float64 else x, self.signs, self.block).to(x.dtype)


class Permuted(nn.Module):
    """Permute the channels of an input [..., channels], then rotate blocks of them, at run time, in float32.

    Args:
        order: the channel that comes to each place.
        signs: ±1, [channels], of the places.
    """

    order: Tensor
    signs: Tensor

    def __init__(self, order: Integer[Tensor, " channels"], signs: Int8[Tensor, " channels"]) -> None:
        super().__init__()
        self.register_buffer("order", order.int())
        self.register_buffer("signs", signs)

    def forward(self, x: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows channels"]:
        """Same shape and dtype as `x`."""
        return permuted(x.float() if x.dtype != torch.float64 else x, self.order, self.signs).to(x.dtype)


class Regular(nn.Module):
    """Rotate blocks of an input [..., channels] by regular Hadamard matrices at run time, in float32.

    Args:
        block: channels that are mixed together.
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows channels"]:
        """Same shape and dtype as `x`."""
        return regular(x.float() if x.dtype != torch.float64 else x, self.block).to(x.dtype)


class Branch(nn.Module):
    """Add x downᵀ upᵀ, of the unrounded x, to a layer's output for the rounded x.

    Args:
        up: [out, rank].
        down: [rank, in], in the basis of the layer's weight.
        change: the transform's run-time change of the layer's input into that basis; None where there is none. It is
            computed once more for the branch; a kernel would share it, and the ledger counts it once.
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
