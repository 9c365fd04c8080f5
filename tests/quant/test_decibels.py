"""The one ratio in decibels: finite for whatever a diverged or an exact layer gives."""

import json
import math

import pytest
import torch

from qdit.quant.decibels import CAP_DB, decibels


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100.0, 1.0, 20.0),
        (1.0, 100.0, -20.0),
        (1.0, 0.0, CAP_DB),  # exact
        (0.0, 0.0, CAP_DB),  # nothing to lose, nothing lost
        (0.0, 1.0, -CAP_DB),
        (1.0, math.inf, -CAP_DB),  # overflow
        (1.0, math.nan, -CAP_DB),
        (math.nan, 1.0, -CAP_DB),
        (math.inf, 1.0, -CAP_DB),
        (math.inf, math.inf, -CAP_DB),
        (1e38, 1e-38, CAP_DB),
        (1e-38, 1e38, -CAP_DB),
    ],
)
def test_every_case_is_a_number(signal, noise, expected):
    found = decibels(torch.tensor(signal), torch.tensor(noise)).item()
    assert found == pytest.approx(expected)
    json.dumps(found, allow_nan=False)


def test_element_by_element():
    assert decibels(torch.ones(3), torch.tensor([1.0, 0.1, 0.0])).tolist() == pytest.approx([0, 10, CAP_DB])
