"""The rank of what was asked for."""

import torch

from qdit.eval.match import ranks


def test_rank_counts_what_is_nearer():
    bank = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    features = torch.tensor([[2.0, 0.1], [2.0, 0.1], [2.0, 0.1], [0.0, 5.0]])
    assert ranks(features, bank, torch.tensor([0, 1, 2, 2])).tolist() == [0, 1, 2, 0]
