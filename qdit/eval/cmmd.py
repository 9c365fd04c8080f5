"""CMMD: the squared maximum mean discrepancy of CLIP features (Jayasumana et al., Rethinking FID, arXiv 2401.09603).

As its released code has it: CLIP ViT-L/14 at 336 px, features of length one, a Gaussian kernel of σ = 10, the biased
estimate over all pairs (an image's with itself among them), times 1000. Unlike FID it assumes no normal distribution,
and of few samples it is already near its value of many. Sums over pairs of jackknife groups are taken once, in tiles.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qdit.eval.base import Features, Shown
from qdit.eval.distribution import DistributionMetric
from qdit.eval.kid import sums_by_group
from qdit.eval.memo import remember
from qdit.eval.reference import Reference
from qdit.eval.statistics import Jackknife, groups_of

SIGMA = 10.0
SCALE = 1000.0
TILE = 2048


def gaussian(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """exp(-|x - y|² / 2σ²) in float64, of features as they are."""
    x, y = x.double(), y.double()
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return (-squares / (2 * SIGMA**2)).exp()


def cmmd(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"], groups: Int[Tensor, " n"] | None = None) -> Jackknife:
    """`SCALE` times the biased MMD² of samples x to a reference y, and with each group of x left out.

    Args:
        x, y: features of images, of any length: they are normalised here.
        groups: of the jackknife; None takes `groups_of`.
    """
    x, y = F.normalize(x.double(), dim=1), F.normalize(y.double(), dim=1)
    groups = groups_of(len(x)) if groups is None else groups
    counts = groups.bincount().double()
    within = sums_by_group(x, gaussian, TILE, groups)
    within_y = sum(float(gaussian(rows, y).sum()) for rows in y.split(TILE)) / len(y) ** 2
    rows_to_y = torch.cat([gaussian(rows, y).sum(1) for rows in x.split(TILE)])
    across = torch.zeros(len(counts), dtype=torch.float64).index_add(0, groups, rows_to_y)

    def estimate(n: Tensor, within_sum: Tensor, across_sum: Tensor) -> Tensor:
        return SCALE * (within_sum / n**2 + within_y - 2 * across_sum / (n * len(y)))

    full = estimate(counts.sum(), within.sum(), across.sum())
    touching = within.sum(0) + within.sum(1) - within.diagonal()  # pairs with a member in the group
    left_out = estimate(counts.sum() - counts, within.sum() - touching, across.sum() - across)
    return Jackknife(float(full), left_out)


@remember
def _cmmd(x: Float[Tensor, "n dim"], reference: Reference, groups: Int[Tensor, " n"]) -> Jackknife:
    return cmmd(x, reference.features(), groups)


@dataclass(frozen=True, kw_only=True)
class CMMD(DistributionMetric):
    """CMMD to the images of a reference that was made with the same CLIP."""

    higher_is_better = False
    fewest_references = 1  # an image is compared with itself, too
    needs_images = True
    shown = Shown("CMMD", digits=3)

    def jackknife(self, features: Features, reference: Reference | None, groups: Int[Tensor, " n"]) -> Jackknife:
        """`cmmd` of the pooled features."""
        assert reference is not None
        return _cmmd(features["pooled"], reference, groups)
