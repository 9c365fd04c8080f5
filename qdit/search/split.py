"""Splits of a budget between groups of sites whose metrics cannot be compared.

ViDiT-Q (arXiv 2406.02540) says that groups get budgets by their overall squared error against full precision, without
a formula; `ByError` is ours. MixDQ (arXiv 2405.17873) tries ratios between the mean bits of its two groups and keeps
the best whole model; its range of ratios is the default of `ByRatio`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Annotated

import numpy as np
from annotated_types import MinLen

from qdit.checked import Checked, Positive
from qdit.search.budget import Costs
from qdit.search.ilp import solve

PIECES = 200  # into which the range between a group's cheapest and dearest plan is divided
LEAST_ERROR = 1e-30


@dataclass(frozen=True)
class Share:
    """A group of sites.

    Args:
        name: of the group.
        genes: their numbers.
        costs: by bits, of the same bits everywhere in the group.
    """

    name: str
    genes: Sequence[int]
    costs: dict[int, float]

    @property
    def least(self) -> float:
        """The cost of the fewest bits."""
        return min(self.costs.values())

    @property
    def most(self) -> float:
        """The cost of the most bits."""
        return max(self.costs.values())


class Split(ABC):
    """Chooses limits for groups that together keep within a limit, which the least costs of all groups do."""

    @abstractmethod
    def limits(self, shares: Sequence[Share], limit: float, error: Callable[[Share, int], float]) -> list[list[float]]:
        """Splits to try, a limit for each group; of several the best whole model is kept.

        Args:
            shares: the groups.
            limit: for all together.
            error: measures a group with so many bits everywhere: the mean squared error of the final latent.
        """


def even(shares: Sequence[Share], limit: float) -> list[float]:
    """Limits that lie equally far between the least and the most of each group."""
    least, most = sum(s.least for s in shares), sum(s.most for s in shares)
    part = min(1.0, max(0.0, (limit - least) / (most - least))) if most > least else 0.0
    return [s.least + part * (s.most - s.least) for s in shares]


def fitted(wanted: Sequence[float], shares: Sequence[Share], limit: float) -> list[float]:
    """Limits as near to the wanted ones as the groups allow, and together as much as the whole limit allows."""
    inside = [min(max(w, s.least), s.most) for w, s in zip(wanted, shares, strict=True)]
    ends = [s.most if sum(inside) < limit else s.least for s in shares]  # what one group cannot spend, others can
    part = min(1.0, abs(limit - sum(inside)) / max(abs(sum(ends) - sum(inside)), LEAST_ERROR))
    return [x + part * (end - x) for x, end in zip(inside, ends, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Even(Split):
    """The same mean bits for all groups."""

    def limits(self, shares: Sequence[Share], limit: float, error: Callable[[Share, int], float]) -> list[list[float]]:
        """See `Split`."""
        return [even(shares, limit)]


@dataclass(frozen=True, kw_only=True)
class ByError(Split):
    """The split of least total error; each group's is measured at the bits on offer and log-linear in between."""

    def limits(self, shares: Sequence[Share], limit: float, error: Callable[[Share, int], float]) -> list[list[float]]:
        """See `Split`."""
        if len(shares) == 1:
            return [even(shares, limit)]
        errors, costs = [], []
        for share in shares:
            bits = sorted(share.costs)
            known = [log(max(error(share, b), LEAST_ERROR)) for b in bits]
            places = np.linspace(share.least, share.most, PIECES + 1)
            between = np.interp(places, [share.costs[b] for b in bits], known)
            errors.append({n: exp(value) for n, value in enumerate(between.tolist())})
            costs.append(dict(enumerate(places.tolist())))
        chosen = solve(errors, Costs(costs, limit))
        return [[cost[n] for cost, n in zip(costs, chosen, strict=True)]]


def _ratios() -> list[float]:
    return np.linspace(0.46, 1.36, 10).round(2).tolist()


@dataclass(frozen=True, kw_only=True)
class ByRatio(Split, Checked):
    """The first group gets several multiples of the others' mean bits, and the best whole model is kept.

    Args:
        ratios: the multiples.

    Raises:
        UserError: there is none, or one that is not above 0.
    """

    ratios: Annotated[list[Positive], MinLen(1)] = field(default_factory=_ratios)

    def limits(self, shares: Sequence[Share], limit: float, error: Callable[[Share, int], float]) -> list[list[float]]:
        """See `Split`."""
        if len(shares) == 1:
            return [even(shares, limit)]
        found = []
        for ratio in self.ratios:
            weights = [share.most * (ratio if n == 0 else 1.0) for n, share in enumerate(shares)]
            found.append(fitted([limit * weight / sum(weights) for weight in weights], shares, limit))
        return [split for n, split in enumerate(found) if split not in found[:n]]
