"""Retrieval rank: does an image show what its prompt asked for? Ranks it among all known images, by their features."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def ranks(features: Float[Tensor, "B D"], bank: Float[Tensor, "N D"], asked: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """How many entries of the bank are nearer to each feature, by cosine, than the one asked for: 0 is a match.

    Chance has a mean of (N - 1) / 2. `ranks < 5` is a match among the first five.
    """
    likeness = F.normalize(features.double(), dim=1) @ F.normalize(bank.double(), dim=1).T
    own = likeness.gather(1, asked[:, None])
    return (likeness > own).sum(1).to(torch.int64)
