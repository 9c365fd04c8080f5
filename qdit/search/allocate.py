"""Allocators of bits: the paper's greedy list, an integer program, or dynamic programming, on one `Menu`.

    minimise Σ error[item, option] · x[item, option]   subject to   Σ_option x[item, option] = 1,   cost · x ≤ limit

ViDiT-Q (arXiv 2406.02540) sorts layers by sensitivity and gives the highest bits to the first until the budget is
consumed; MixDQ (arXiv 2405.17873) solves the integer program. No allocator may exceed the limit.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qdit.checked import Checked, Count
from qdit.errors import UserError
from qdit.search.budget import SLACK, Costs, relaxed
from qdit.search.ilp import solve

MOST_CELLS = 2**17  # size of the dynamic program's table, if costs have a common step


@dataclass(frozen=True)
class Menu:
    """A multiple-choice knapsack: one option of each item, least total error, total cost within the table's limit."""

    items: Sequence[tuple[int, int | None]]
    """Gene, and range or (None) all ranges at once."""
    errors: Sequence[dict[Any, float]]
    """By option: bits, or a pattern where an item is a gene in all ranges."""
    table: Costs

    def fill(self, plan: list[list[int]], chosen: Sequence[Any]) -> None:
        """Write the chosen options into a plan, as lists of bits by gene and range."""
        for (gene, number), option in zip(self.items, chosen, strict=True):
            if number is None:
                plan[gene][:] = option
            else:
                plan[gene][number] = option


class Allocator(ABC):
    """Chooses one option for each item."""

    @abstractmethod
    def choose(self, menu: Menu) -> list[Any]:
        """The chosen options, in the items' order.

        Raises:
            UserError: no choice is within the limit.
        """


def cheapest(menu: Menu) -> list[Any]:
    """The cheapest option of each item.

    Raises:
        UserError: they are above the limit together.
    """
    chosen = list(menu.table.cheapest)
    if not menu.table.allows(tuple(chosen)):
        raise UserError("search: no choice is within the budget")
    return chosen


@dataclass(frozen=True, kw_only=True)
class Greedy(Allocator):
    """The most sensitive first: each item takes, of the options that still fit, the one of least error.

    Sensitivity is the error of the cheapest option. Among equals the cheaper item is first (more of them fit), then
    the earlier one; an option that costs more and is no better is not taken.
    """

    def choose(self, menu: Menu) -> list[Any]:
        """See `Allocator`."""
        chosen = cheapest(menu)
        costs, errors = menu.table.costs, menu.errors
        left = relaxed(menu.table.limit) - menu.table.spent(tuple(chosen))

        def urgency(item: int) -> tuple[float, float, int]:
            dearest = max(costs[item].values()) - costs[item][chosen[item]]
            return -(errors[item][chosen[item]] - min(errors[item].values())), dearest, item

        for item in sorted(range(len(chosen)), key=urgency):
            more = {option: cost - costs[item][chosen[item]] for option, cost in costs[item].items()}
            fitting = [option for option in more if more[option] <= left]
            chosen[item] = min(fitting, key=lambda option: (errors[item][option], more[option]))
            left -= more[chosen[item]]
        return chosen


@dataclass(frozen=True, kw_only=True)
class MILP(Allocator):
    """The choice of least total error, by an integer program (`qdit.search.ilp`)."""

    def choose(self, menu: Menu) -> list[Any]:
        """See `Allocator`."""
        return list(solve(menu.errors, menu.table))


@dataclass(frozen=True, kw_only=True)
class DynamicProgramme(Allocator, Checked):
    """The choice of least total error, by dynamic programming over the cost spent so far.

    It is exact where costs are multiples of a common step that is not too small. Otherwise costs are rounded up to one
    of `resolution` steps, which may miss a better choice but never exceeds the limit.

    Args:
        resolution: steps between the cheapest choice and the limit.

    Raises:
        UserError: it is below 1.
    """

    resolution: Count = 20000

    def choose(self, menu: Menu) -> list[Any]:
        """See `Allocator`."""
        base = cheapest(menu)
        room = relaxed(menu.table.limit) - menu.table.spent(tuple(base))
        more = [
            {option: cost - costs[first] for option, cost in costs.items()}
            for costs, first in zip(menu.table.costs, base, strict=True)
        ]
        step = self.step(more, room)
        cells = int(min(room, sum(max(item.values()) for item in more)) / step) + 1
        best, choices = np.zeros(cells), []
        for item, errors in zip(more, menu.errors, strict=True):
            options = sorted(item, key=lambda option: item[option])
            whole = [math.ceil(item[option] / step - 1e-6) for option in options]
            totals = np.full((len(options), cells), np.inf)
            for number, (option, cost) in enumerate(zip(options, whole, strict=True)):
                if cost < cells:
                    totals[number, cost:] = best[: cells - cost] + errors[option]
            first = totals.argmin(0)
            best = totals[first, np.arange(cells)]
            choices.append((options, whole, first))
        cell, chosen = cells - 1, []
        for options, whole, first in reversed(choices):
            number = first[cell]
            chosen.append(options[number])
            cell -= whole[number]
        return chosen[::-1]

    def step(self, more: list[dict[Any, float]], room: float) -> float:
        """The common step of the costs if it divides the room into few enough cells, else one of `resolution`.

        Args:
            more: what each item's options cost more than its cheapest.
            room: between the cheapest choice and the limit.
        """
        costs = {cost for item in more for cost in item.values() if cost > 0}
        if all(float(cost).is_integer() for cost in costs):
            common = math.gcd(*map(int, costs))
            if common and room / common < MOST_CELLS:
                return float(common)
        return max(room / self.resolution, SLACK)
