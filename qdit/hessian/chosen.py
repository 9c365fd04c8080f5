"""Rows of a tensor that comes batch by batch, chosen beforehand by number."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qdit.errors import UserError


class ChosenRows:
    """The rows of some numbers, in the order of the numbers; all others are let go at once.

    Args:
        numbers: of the rows of all batches, one batch behind the other.
    """

    def __init__(self, numbers: Int[Tensor, " n"]) -> None:
        self.ascending, self.places = numbers.sort()
        self.first = 0
        self.parts: list[Tensor] = []

    def add(self, batch: Float[Tensor, "rows *shape"]) -> None:
        """Take in the next batch."""
        here = (self.ascending >= self.first) & (self.ascending < self.first + len(batch))
        self.parts.append(batch[(self.ascending[here] - self.first).to(batch.device)].float())
        self.first += len(batch)

    def value(self, name: str) -> Float[Tensor, "n *shape"]:
        """The rows, float32, once all batches were seen; they are not kept.

        Raises:
            UserError: they are not finite; the message calls them `name`.
        """
        collected = torch.cat(self.parts)
        self.parts.clear()
        if not collected.isfinite().all():
            raise UserError(f"range hessian: {name} is not finite; try dtype=float32")
        return torch.empty_like(collected).index_copy_(0, self.places.to(collected.device), collected)
