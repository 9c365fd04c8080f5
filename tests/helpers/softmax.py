"""Rows of probabilities."""

import torch
from torch import Tensor


def softmax_rows(sharpness: float, rows: int = 64, keys: int = 256) -> Tensor:
    """Outputs of a softmax of normal scores, [rows, keys]; the sharper, the more of a row is in its largest value."""
    scores = sharpness * torch.randn(rows, keys, generator=torch.Generator().manual_seed(0))
    return scores.softmax(-1)
