"""Whole trajectories, of which recipes pick; that the points are a run's is tested in tests/api/test_models.py."""

import pytest
import torch

import qdit
from qdit.calibration import NoCalibration
from qdit.errors import UserError


@pytest.fixture
def data(tiny_pipe):
    return qdit.calibrate(tiny_pipe, [3, 5], "batch_size=2", num_samples=3, steps=4)


def test_states_follow_each_other_trajectory_by_trajectory(data, tiny_model):
    assert data.t.tolist() == [750, 500, 250, 0] * 3
    assert data.y.tolist() == [3] * 4 + [5] * 4 + [3] * 4
    assert data.x.shape == (12, 4, 8, 8)
    assert data.picked(NoCalibration(), tiny_model) is data


def test_points_that_are_picked_are_states(data, tiny_model):
    source = qdit.recipe(
        "rtn", "calibration=paired", "calibration.num_samples=6", "calibration.per_trajectory=2"
    ).calibration
    found = data.picked(source, tiny_model)
    rows = found.origin[:, 0] * 4 + found.origin[:, 1]
    assert torch.equal(found.x, data.x[rows])
    assert torch.equal(found.t, data.t[rows])
    assert (found.y == 10).sum() == 3
    assert set(found.y[found.y != 10].tolist()) <= {3, 5}


def test_too_few_trajectories_are_one_message(data, tiny_model):
    source = qdit.recipe("rtn", "calibration.num_samples=40").calibration
    with pytest.raises(UserError, match=r"40 points of 10 trajectories, and the data has 3.*num_samples=10"):
        data.picked(source, tiny_model)
