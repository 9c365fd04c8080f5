"""Places of labels and colours of families."""

import numpy as np
import pytest
from helpers.fake_records import METHODS

from qdit.plots.style import FAMILY_COLOURS, family_colour, legend_columns, spread


def test_labels_keep_their_order_and_distance():
    wanted = [0.5, 0.52, 0.9, 0.51, 0.1]
    places = spread(wanted, 0.1)
    order = np.argsort(wanted)
    assert (np.diff(places[order]) >= 0.1 - 1e-12).all()
    assert places[4] == pytest.approx(0.1)  # who has room stays
    assert places[[0, 1, 3]].mean() == pytest.approx(0.51)


def test_families_have_their_colours():
    assert {family_colour(family) for family in METHODS.values()} == set(FAMILY_COLOURS.values())
    assert family_colour(None) == family_colour("mine") not in FAMILY_COLOURS.values()


def test_legends_take_the_rows_that_they_need():
    assert legend_columns(["w8a8", "w6a6", "w4a8", "w4a4", "Pareto front"], 6.4) == 5
    formats = ["int4_g64", "int4_g16", "mxfp4", "nvfp4", "nvfp4_46", "lloyd4", "Pareto front"]
    assert legend_columns(formats, 6.4) == 4
    assert legend_columns(["a method of a very long name"], 1.0) == 1
