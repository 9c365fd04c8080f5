"""The quantizer of queries or keys whose channels are scaled while they are rounded (`qdit.attention.balance`)."""

from jaxtyping import Float
from torch import Tensor, nn


class Balanced(nn.Module):
    """Round an operand [rows, heads, tokens, channels] in scaled channels: Q(x s) / s.

    A kernel would multiply the scaled operands as they are, as those of queries and keys cancel.

    Args:
        quantizer: Q.
        by: s.
    """

    by: Tensor

    def __init__(self, quantizer: nn.Module, by: Float[Tensor, "heads 1 channels"]) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.register_buffer("by", by.float())

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return (self.quantizer(x.float() * self.by) / self.by).to(x.dtype)

    @property
    def by_rows(self) -> bool:
        """Whether some rows are rounded as they are among all."""
        return bool(self.quantizer.by_rows)
