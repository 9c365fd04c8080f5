"""Rows of a tensor that comes batch by batch, chosen beforehand by number."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class ChosenRows:
    """The rows of some numbers, in the order of the numbers; all others are let go at once.

    Args:
        numbers: of the rows of all batches, one batch behind the other.
        device: where rows are kept; None is where they come from.
    """

    def __init__(self, numbers: Int[Tensor, " n"], device: str | None = None) -> None:
        self.ascending, self.places = numbers.sort()
        self.device = device
        self.seen = 0
        """How many rows went by."""
        self.parts: list[Tensor] = []

    def add(self, batch: Float[Tensor, "rows *shape"]) -> None:
        """Take in the next batch."""
        here = (self.ascending >= self.seen) & (self.ascending < self.seen + len(batch))
        rows = batch[(self.ascending[here] - self.seen).to(batch.device)].float()
        self.parts.append(rows if self.device is None else rows.to(self.device))
        self.seen += len(batch)

    def value(self) -> Float[Tensor, "n *shape"]:
        """The rows, float32, once all batches were seen; they are not kept."""
        collected = torch.cat(self.parts)
        self.parts.clear()
        return torch.empty_like(collected).index_copy_(0, self.places.to(collected.device), collected)
