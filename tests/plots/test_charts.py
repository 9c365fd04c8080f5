"""Fronts of charts."""

import numpy as np

from qdit.plots import charts


def test_front_of_both_directions():
    points = np.array([(4.0, 20.0), (8.0, 40.0), (6.0, 15.0), (4.0, 25.0)])
    assert charts.front(points, higher=True) == [3, 1]
    assert charts.front(points, higher=False) == [0, 2]
    assert charts.front(np.empty((0, 2)), higher=True) == []
