"""Precision and recall of generated samples: Kynkäänniemi et al., arXiv 1904.06991, k = 3.

A set's manifold is the union of balls around its points, each reaching to the third nearest other point. Precision is
the share of generated points inside the reference's manifold; recall the share of reference points inside the
generated one. Distances are Euclidean, in float32, centred at the reference's mean, and computed in tiles. Left out:
ADM's float16 distances, which change either number by .001 to .0024. Both numbers depend on the sizes of both sets:
compare only equal n against the same reference.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.statistics import Jackknife, groups_of, number_of

NEIGHBOURS = 3
TILE = 1024


def radii_of(y: Float[Tensor, "m dim"]) -> Float[Tensor, " m"]:
    """Distance of each row to its third nearest other row.

    Raises:
        UserError: there are no three other rows: a ball would hold everything.
    """
    if len(y) <= NEIGHBOURS:
        raise UserError(
            f"precision and recall are not defined for {len(y)} image{'s' * (len(y) != 1)}: each reaches to its third "
            f"nearest other one; give at least {NEIGHBOURS + 1}, or leave them out"
        )
    radii = []
    for start in range(0, len(y), TILE):
        distances = _to_others(y, start)
        radii.append(distances.kthvalue(NEIGHBOURS).values)
    return torch.cat(radii)


def _to_others(x: Float[Tensor, "n dim"], start: int) -> Float[Tensor, "tile n"]:
    """Distances of rows start, start+1, ... to all rows, with infinity to themselves."""
    rows = x[start : start + TILE]
    distances = torch.cdist(rows, x)
    distances[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = torch.inf
    return distances


def _radii_without_each_group(x: Float[Tensor, "n dim"], groups: Int[Tensor, " n"]) -> Float[Tensor, "groups n"]:
    """Radii when a group is missing: the third nearest overall is among the three nearest of each remaining group."""
    count = number_of(groups)
    radii = torch.empty(count, len(x), dtype=x.dtype)
    for start in range(0, len(x), TILE):
        distances = _to_others(x, start)
        nearest = [
            distances[:, groups == g].topk(min(NEIGHBOURS, int((groups == g).sum())), largest=False).values
            for g in range(count)
        ]
        for g in range(count):
            rest = torch.cat([near for h, near in enumerate(nearest) if h != g], dim=1)
            radii[g, start : start + TILE] = rest.kthvalue(NEIGHBOURS).values
    return radii


def _covered(
    y: Float[Tensor, "m dim"], x: Float[Tensor, "n dim"], radii: Float[Tensor, "sets n"], keep: Bool[Tensor, "sets n"]
) -> Float[Tensor, " sets"]:
    """Share of the rows of y inside some ball of x, for several sets of radii and kept balls."""
    reach = radii.masked_fill(~keep, -1)  # a ball that is left out holds nothing
    hits = torch.zeros(len(reach), dtype=torch.float64)
    for rows in y.split(TILE):
        distances = torch.cdist(rows, x)
        hits += torch.stack([(distances <= r).any(1).sum() for r in reach])
    return hits / len(y)


def precision_recall(
    generated: Float[Tensor, "n dim"],
    reference: Float[Tensor, "m dim"],
    reference_radii: Float[Tensor, " m"],
    groups: Int[Tensor, " n"] | None = None,
) -> tuple[Jackknife, Jackknife]:
    """Precision and recall, each also with every group of generated samples left out.

    Args:
        generated: features of the samples.
        reference: features of real images.
        reference_radii: `radii_of(reference - its mean)`, which does not change from run to run.
        groups: of the jackknife; None takes `groups_of`.
    """
    groups = groups_of(len(generated)) if groups is None else groups
    centre = reference.mean(0)
    x, y = generated - centre, reference - centre
    inside = torch.cat([(torch.cdist(rows, y) <= reference_radii).any(1) for rows in x.split(TILE)]).double()
    precision = Jackknife.over_groups(groups, lambda keep: float(inside[keep].mean()))

    keep = torch.stack([groups != g for g in range(number_of(groups))])
    everything = torch.ones(1, len(x), dtype=torch.bool)
    radii = torch.cat([radii_of(x)[None], _radii_without_each_group(x, groups)])
    shares = _covered(y, x, radii, torch.cat([everything, keep]))
    return precision, Jackknife(float(shares[0]), shares[1:])
