"""Allocation without sampling: the group sizes of least total error within the budget, by an integer program.

    minimise Σ error[gene, g] · x[gene, g]   subject to   Σ_g x[gene, g] = 1,   Σ cost[gene, g] · x[gene, g] ≤ limit

with x binary; scipy's `milp` (HiGHS) solves it exactly. `ILP` here and `search.hessian` define the error. `ILP` takes
each site's own error, one of the rivals in Q-DiT's comparison (its table of allocation methods):

The error of a site at a group size is the relative error of its output, Σ |y_g - y|² / Σ |y|², when its weight and its
input are both quantized and its input is that of the full-precision network. Errors of the sites of a gene (the layers
that share an input) are summed. What exactly the paper's program minimized is not published; relative errors are our
choice, because the layers' outputs differ in size by orders of magnitude.
"""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from qdit.calibration.data import Pass
from qdit.calibration.observers import attended_rows, watching
from qdit.errors import UserError
from qdit.model.base import Site
from qdit.quantized import Allocation
from qdit.recipes import Recipe
from qdit.search.base import Bench, GroupSearch
from qdit.search.budget import Costs
from qdit.search.space import Choice, Space

Errors = Sequence[dict[Any, float]]
"""For each gene, the error by group size (or by whatever else is chosen)."""
LARGEST = 1e4  # errors are scaled to this maximum, because the solver stops within 1e-6 of the optimum
TIGHTENING = 2e-6  # of the costs' scale, by which the limit is tightened: the solver may miss it by half of that


@dataclass(frozen=True, kw_only=True)
class LeastError(GroupSearch):
    """Minimise a sum of errors, one for each gene.

    Args:
        group_sizes: among which a gene chooses; those that do not divide its channels are not offered to it.
    """

    needs_calibration = True

    group_sizes: list[int]

    @abstractmethod
    def errors(self, bench: Bench) -> Errors:
        """The error of each gene at each of its group sizes."""

    def space(self, recipe: Recipe, sites: Sequence[Site]) -> Space:
        """See `GroupSearch`."""
        return Space.of(recipe, sites, self.group_sizes)

    def allocate(self, bench: Bench) -> Allocation:
        """The choice of least total error."""
        errors = self.errors(bench)
        choice = solve(errors, bench.table)
        total = sum(error[size] for error, size in zip(errors, choice, strict=True))
        return Allocation(choice=choice, details={"total_error": total})


def solve(errors: Errors, table: Costs) -> Choice:
    """The legal choice of least total error.

    Raises:
        UserError: the errors are not finite, or no choice is legal.
    """
    keys = [(gene, size) for gene, cost in enumerate(table.costs) for size in cost]
    error = np.array([errors[gene][size] - min(errors[gene].values()) for gene, size in keys])
    if not np.isfinite(error).all():
        raise UserError("search: the errors of the layers are not finite; try dtype=float32 or more bits")
    cost = np.array([table.costs[gene][size] for gene, size in keys])
    scale = np.abs(cost).max() or 1.0
    one = np.array([[float(gene == g) for gene, _ in keys] for g in range(len(table.costs))])
    for tightened in (0.0, TIGHTENING, 10 * TIGHTENING):
        within = LinearConstraint((cost / scale)[None], ub=table.limit / scale - tightened)
        found = milp(
            LARGEST * error / (error.max() or 1.0),
            constraints=[LinearConstraint(one, 1, 1), within],
            integrality=np.ones(len(keys)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            continue
        choice = tuple(size for (_, size), chosen in zip(keys, found.x > 0.5, strict=True) if chosen)
        if table.allows(choice):
            return choice
    if table.allows(table.cheapest):
        return table.cheapest  # the budget leaves no more room than the solver's tolerance
    raise UserError("search: no choice is within the budget")


@dataclass(frozen=True, kw_only=True)
class ILP(LeastError):
    """Minimise the sum of the sites' relative output errors."""

    @torch.no_grad()
    def errors(self, bench: Bench) -> Errors:
        """One pass of the calibration data, in which every site is also computed at every group size."""
        calls = Pass(bench.model, bench.collect())  # before the hooks, which would watch the sampling of the data
        sizes = {site.name: gene.sizes for gene in bench.space.genes for site in gene.sites}
        noise: dict[tuple[str, int], float] = defaultdict(float)
        energy: dict[str, float] = defaultdict(float)

        def compare(site: Site, layer: nn.Module, x: Tensor, output: Tensor) -> None:
            def square(difference: Tensor) -> float:
                return float(attended_rows(bench.model, site.name, calls.y, difference).square().sum())

            energy[site.name] += square(output.double())
            for size in sizes[site.name]:
                quantized = bench.variants.of_size(size).layers[site.name](x)
                noise[site.name, size] += square(quantized.double() - output.double())

        for size in {size for fitting in sizes.values() for size in fitting}:
            bench.variants.of_size(size)  # before the hooks, which would watch the fit
        sites = [site for gene in bench.space.genes for site in gene.sites]
        with bench.variants.rewrite.installed(bench.model), watching(bench.model, sites, compare):
            calls.run()
        return [
            {g: sum(noise[s.name, g] / max(energy[s.name], 1e-30) for s in gene.sites) for g in gene.sizes}
            for gene in bench.space.genes
        ]
