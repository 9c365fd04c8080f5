"""Kernel distance (KID): Bińkowski et al., Demystifying MMD GANs, arXiv 1801.01401, equation 4.

The kernel is (x·y / D + 1)³ and the estimate is the unbiased MMD² over all pairs, so it can be negative and is never
clipped. torch-fidelity averages 100 overlapping subsets instead; the estimand is the same. Sums of the kernel over
pairs of jackknife groups are taken once, in tiles; leaving a group out is then arithmetic on a small matrix.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.statistics import Jackknife, groups_of, number_of

TILE = 2048


def kernel(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """(x·y / D + 1)³ in float64."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def mean_within(y: Float[Tensor, "m dim"]) -> float:
    """Mean of the kernel over all pairs of different rows.

    Raises:
        UserError: there is one row, and so no pair.
    """
    if len(y) < 2:
        raise UserError(f"KID is not defined for {len(y)} reference image: it needs pairs; give at least 2")
    total = sum(float(kernel(rows, y).sum()) for rows in y.split(TILE))
    m = len(y)
    return (total - float(_diagonal(y).sum())) / (m * (m - 1))


def _diagonal(x: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    """k(x_i, x_i)."""
    return (x.double().square().sum(1) / x.shape[1] + 1) ** 3


def sums_by_group(
    x: Float[Tensor, "n dim"], of: Callable[[Tensor, Tensor], Tensor], tile: int, groups: Int[Tensor, " n"]
) -> Float[Tensor, "groups groups"]:
    """Sums of a kernel over all pairs of rows, those of a row with itself among them, by the groups of the two."""
    member = _member(groups)
    return member.T @ torch.cat([of(rows, x) @ member for rows in x.split(tile)])


def _member(groups: Int[Tensor, " n"]) -> Float[Tensor, "n groups"]:
    """1 at the group of each row."""
    return torch.nn.functional.one_hot(groups, number_of(groups)).double()


def _group_sums(x: Float[Tensor, "n dim"], groups: Int[Tensor, " n"]) -> Float[Tensor, "groups groups"]:
    """Sums of KID's kernel over pairs of different rows, by the groups of the two."""
    return sums_by_group(x, kernel, TILE, groups) - torch.diag(_member(groups).T @ _diagonal(x))


def kernel_distance(
    x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"], within_y: float, groups: Int[Tensor, " n"] | None = None
) -> Jackknife:
    """Unbiased MMD² of samples x to a reference y, and with each group of x left out.

    Args:
        x: features of the samples.
        y: features of the reference.
        within_y: `mean_within(y)`, which does not change from run to run.
        groups: of the jackknife; None takes `groups_of`.
    """
    groups = groups_of(len(x)) if groups is None else groups
    within, counts = _group_sums(x, groups), groups.bincount().double()
    row_sums = torch.cat([kernel(rows, y).sum(1) for rows in x.split(TILE)])
    across = torch.zeros(len(counts), dtype=torch.float64).index_add(0, groups, row_sums)

    def estimate(n: Tensor, within_sum: Tensor, across_sum: Tensor) -> Tensor:
        return within_sum / (n * (n - 1)) + within_y - 2 * across_sum / (n * len(y))

    full = estimate(counts.sum(), within.sum(), across.sum())
    touching = within.sum(0) + within.sum(1) - within.diagonal()  # pairs with a member in the group
    left_out = estimate(counts.sum() - counts, within.sum() - touching, across.sum() - across)
    return Jackknife(float(full), left_out)
