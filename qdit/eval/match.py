"""Is what a picture shows what was asked for? Ranks of the asked thing among all that there are, by features."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def ranks(features: Float[Tensor, "B D"], bank: Float[Tensor, "N D"], asked: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """How many of the bank are nearer to each feature than the one that was asked for, by cosine: 0 is a match.

    Chance has a mean of (N - 1) / 2. `ranks < 5` is a match among the first five.
    """
    likeness = F.normalize(features.double(), dim=1) @ F.normalize(bank.double(), dim=1).T
    own = likeness.gather(1, asked[:, None])
    return (likeness > own).sum(1).to(torch.int64)
