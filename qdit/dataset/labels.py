"""How the class of sample i is drawn. Every strategy is a function of (seed, i): batches and workers do not matter."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qdit.seeding import generator, uniform

STREAM = "label"


@dataclass(kw_only=True)
class LabelStrategy(ABC):
    """A rule from (seed, index) to a class."""

    @abstractmethod
    def draw(self, indices: Sequence[int], seed: int, frequencies: Float[Tensor, " K"]) -> Int[Tensor, " B"]:
        """Draw a class in 0 … K-1 for each index; `frequencies` are the data's, and sum to one."""


@dataclass(kw_only=True)
class RandomLabels(LabelStrategy):
    """Independent and uniform over the classes (DiT, Q-DiT)."""

    def draw(self, indices: Sequence[int], seed: int, frequencies: Float[Tensor, " K"]) -> Int[Tensor, " B"]:
        """Draw uniformly, whatever the data's frequencies."""
        return torch.tensor([int(uniform(seed, STREAM, i) * len(frequencies)) for i in indices], dtype=torch.long)


@dataclass(kw_only=True)
class FrequencyLabels(LabelStrategy):
    """Independent, with the data's class frequencies: what an unconditional comparison with the data needs."""

    def draw(self, indices: Sequence[int], seed: int, frequencies: Float[Tensor, " K"]) -> Int[Tensor, " B"]:
        """Invert the cumulative frequencies."""
        draws = torch.tensor([uniform(seed, STREAM, i) for i in indices], dtype=torch.float64)
        edges = frequencies.double().cumsum(0)[:-1]  # without the last, which rounding may leave below one
        return torch.searchsorted(edges, draws, right=True)


@dataclass(kw_only=True)
class BalancedLabels(LabelStrategy):
    """Every class once in each run of K indices, in an order drawn anew for each run (PTQ4DiT's counts, not sorted).

    Sorted classes would change the Inception score, which is computed over chunks of consecutive images; one order for
    all runs would give each jackknife group (index mod 20) classes of its own wherever 20 divides K.
    """

    def draw(self, indices: Sequence[int], seed: int, frequencies: Float[Tensor, " K"]) -> Int[Tensor, " B"]:
        """Take entry i mod K of the seeded permutation number i // K."""
        classes = len(frequencies)
        runs = {i // classes for i in indices}
        orders = {r: torch.randperm(classes, generator=generator(seed, STREAM, r)) for r in runs}
        return torch.tensor([int(orders[i // classes][i % classes]) for i in indices])
