"""Inception score (Salimans et al., arXiv 1606.03498) by ADM's convention: chunks of 5000 in index order, no shuffle.

The score is the mean over chunks of exp(mean KL(p_i || mean p)); a last chunk may be shorter, as in ADM's evaluator.
It depends on the chunks: images sorted by class score lower, and torch-fidelity's ten shuffled chunks are another
number.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qdit.eval.statistics import Jackknife, groups_of, number_of

CHUNK = 5000


def inception_score(logits: Float[Tensor, "n classes"], groups: Int[Tensor, " n"] | None = None) -> Jackknife:
    """The score, and with each group of samples (None: `groups_of`) left out of its chunk.

    KL splits into the samples' negative entropies and the entropy of their mean, so sums by (chunk, group) suffice.
    """
    n, classes = logits.shape
    logits = logits.double()
    p = logits.softmax(1)
    groups = groups_of(n) if groups is None else groups
    chunks, width = -(-n // CHUNK), number_of(groups)
    cell = torch.arange(n) // CHUNK * width + groups
    count = cell.bincount(minlength=chunks * width).double()
    mass = torch.zeros(chunks * width, classes, dtype=torch.float64).index_add(0, cell, p)
    plogp = torch.zeros(chunks * width, dtype=torch.float64).index_add(0, cell, (p * logits.log_softmax(1)).sum(1))
    count, plogp, mass = (t.unflatten(0, (chunks, width)) for t in (count, plogp, mass))

    def score(keep: Bool[Tensor, " groups"]) -> float:
        size = count[:, keep].sum(1)
        there = size > 0  # a last chunk of one sample vanishes with its group
        size, mean = size[there], mass[there][:, keep].sum(1) / size[there, None]
        divergence = plogp[there][:, keep].sum(1) / size - torch.special.xlogy(mean, mean).sum(1)
        return float(divergence.exp().mean())

    each = torch.eye(width, dtype=torch.bool)
    left_out = torch.tensor([score(~one) for one in each], dtype=torch.float64)
    return Jackknife(score(torch.ones(width, dtype=torch.bool)), left_out)
