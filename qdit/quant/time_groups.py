"""Contiguous groups of sampling steps: equal ones (TQ-DiT, arXiv 2502.04056), or those of least cost.

`Groups` is the one map from a timestep to its group, used for calibration and for sampling. TQ-DiT's release has two
maps, and the one for sampling puts nearly all steps into the last group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

Time = int | float
"""A timestep: whole where a model's training counted steps, a float where it matched a flow."""
CHUNK_VALUES = 2**24  # running maxima held at once: 128 MiB in float64


@dataclass(frozen=True)
class Groups:
    """Contiguous groups of timesteps, ascending; `edges` are the first timesteps of all groups but the lowest.

    A timestep that the sampler does not visit belongs to the group of the visited one below it; where timesteps are
    floats, an edge is halfway between two visited ones, so that a rounded timestep stays in its group.
    """

    edges: tuple[Time, ...] = ()

    @property
    def count(self) -> int:
        """How many there are; without edges, all timesteps are one group."""
        return len(self.edges) + 1

    def of(self, timesteps: Real[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The number of the group of each timestep.

        >>> Groups((250, 500)).of(torch.tensor([0, 249, 250, 999]))
        tensor([0, 0, 1, 2])
        """
        return group_of(timesteps, self.tensor().to(timesteps.device))

    def tensor(self) -> Real[Tensor, " edges"]:
        """The edges: int64 if all are whole, else float32, which is what timesteps are then."""
        return torch.tensor(self.edges) if self.edges else torch.tensor(self.edges, dtype=torch.long)


def group_of(timesteps: Real[Tensor, " B"], edges: Real[Tensor, " edges"]) -> Int[Tensor, " B"]:
    """The number of edges that each timestep has reached."""
    return torch.bucketize(timesteps.contiguous(), edges, right=True)


ALL = Groups()
"""All timesteps are one group."""


def split(timesteps: Sequence[Time], starts: Sequence[int]) -> Groups:
    """The groups of a sampler's `timesteps`, sorted upwards; `starts` are the positions where a new group begins.

    >>> split([500, 0, 250], [1]), split([9.0, 0.5, 2.5], [1, 2])
    (Groups(edges=(250,)), Groups(edges=(1.5, 5.75)))
    """
    ascending = sorted(set(timesteps))
    return Groups(tuple(edge(ascending[start - 1], ascending[start]) for start in starts))


def edge(below: Time, first: Time) -> Time:
    """The edge of a group whose first visited timestep is `first`, above a group that ends with `below`."""
    return first if isinstance(first, int) else (below + first) / 2


def equal_starts(steps: int, groups: int) -> list[int]:
    """The first step of each group but the lowest: step s of T is in group ⌊s G / T⌋, and sizes differ by one at most.

    >>> equal_starts(250, 4), equal_starts(10, 3)
    ([63, 125, 188], [4, 7])
    """
    return [-(-group * steps // groups) for group in range(1, groups)]


def range_costs(curve: Float[Tensor, "steps places"]) -> Float[Tensor, "steps steps"]:
    """The cost of every possible group: entry [i, j] is that of steps i to j, infinite where i > j. Float64.

    A place's rounding noise is proportional to the square of its range, and a group's range is that of its widest step:
    the cost is Σ over places of steps · widest² / mean². The mean over all steps makes places comparable.

    Args:
        curve: the range of each place at each step, ascending in time.
    """
    steps = len(curve)
    squares = curve.double().square()
    squares = squares / squares.mean(0).clamp(min=1e-30)
    after = torch.ones(steps, steps, dtype=torch.bool, device=curve.device).triu().unsqueeze(-1)
    total = torch.zeros(steps, steps, dtype=torch.float64, device=curve.device)
    for part in squares.split(max(1, CHUNK_VALUES // steps**2), dim=1):
        total += torch.where(after, part.unsqueeze(0), 0.0).cummax(1).values.sum(-1)
    number = torch.arange(steps, device=curve.device)
    lengths = number.view(1, -1) - number.view(-1, 1) + 1
    return torch.where(lengths > 0, total * lengths, torch.inf)


def cheapest_starts(costs: Float[Tensor, "steps steps"], groups: int) -> list[int]:
    """The first step of each group but the lowest, for the split into `groups` of least total cost.

    Dynamic programming over the last step of each group: groups · steps² operations.

    >>> curve = torch.tensor([[1.0], [1.0], [1.0], [5.0], [5.0], [9.0]])
    >>> cheapest_starts(range_costs(curve), 3)
    [3, 5]
    """
    best, choices = costs[0], []
    for _ in range(groups - 1):
        # A last group from i to j, and the best groups of the steps before i.
        total = costs[1:] + best[:-1, None]
        best, first = total.min(0)
        choices.append(first + 1)
    starts, end = [], len(costs) - 1
    for first in reversed(choices):
        starts.append(int(first[end]))
        end = starts[-1] - 1
    return starts[::-1]


def interpolated(
    curve: Float[Tensor, "seen places"], seen: Real[Tensor, " seen"], timesteps: Real[Tensor, " steps"]
) -> Float[Tensor, "steps places"]:
    """A curve over time, given at ascending timesteps, at others: linear between, and constant beyond the ends.

    >>> interpolated(torch.tensor([[1.0], [3.0]]), torch.tensor([10, 20]), torch.tensor([0, 10, 15, 20, 30])).flatten()
    tensor([1., 1., 2., 3., 3.])
    """
    above = torch.searchsorted(seen, timesteps).clamp(max=len(seen) - 1)
    below = (above - 1).clamp(min=0)
    gap = seen[above] - seen[below]
    gap = torch.where(gap > 0, gap, 1)
    share = ((timesteps - seen[below]) / gap).clamp(0, 1).unsqueeze(1)
    return torch.lerp(curve[below], curve[above], share)
