"""The salience of ViDiT-Q's first version: the greatest magnitude of each sample, averaged over samples.

Its release (arXiv 2406.02540v1) averages over a batch and keeps a running mean of batches, with a decay of 0.95. Here
all samples have equal weight: a running mean would depend on the order of the batches, and on how many there are.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean, over all samples, of the greatest magnitude over a sample's tokens."""

    def start(self, weight: Float[Tensor, " channels"]) -> "_Mean":
        """See `qdit.transform.statistics.Statistic`."""
        return _Mean()


class _Mean:
    def __init__(self) -> None:
        self.total, self.samples = torch.zeros((), dtype=torch.float64), 0

    def add(self, maxima: Float[Tensor, "samples channels"], timesteps: Int[Tensor, " samples"]) -> None:
        """See `Gathering`."""
        self.total = self.total.to(maxima.device) + maxima.sum(0, dtype=torch.float64)
        self.samples += len(maxima)

    def value(self) -> Float[Tensor, " channels"]:
        """See `Gathering`."""
        return (self.total / self.samples).float()
