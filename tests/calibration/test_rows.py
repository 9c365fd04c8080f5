"""Rows that are chosen by number come in the order of the numbers, whatever the batches."""

import pytest
import torch

from qdit.calibration.rows import ChosenRows


@pytest.mark.parametrize("numbers", [[7, 0, 5, 2], [0, 1, 2], [9], list(range(10))])
@pytest.mark.parametrize("batch", [1, 3, 10])
def test_the_chosen_rows_in_their_order(numbers, batch):
    rows, chosen = torch.randn(10, 2, 3), ChosenRows(torch.tensor(numbers), "cpu")
    for part in rows.split(batch):
        chosen.add(part)
    assert chosen.seen == 10
    assert torch.equal(chosen.value(), rows[numbers])
    assert chosen.parts == []
