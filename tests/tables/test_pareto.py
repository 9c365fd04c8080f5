"""The front, and what is picked from it with its doubts."""

import numpy as np
import pytest
from helpers.fake_records import metric, record, write

from qdit.errors import UserError
from qdit.tables import load_results
from qdit.tables.pareto import bars_of, front, front_rows, pick
from qdit.tables.summary import ROWS, summarise


def test_front():
    points = np.array([[3.0, 5.0], [2.0, 6.0], [2.5, 1.0], [1.0, 5.0], [2.0, 4.0]])
    assert front(points, higher=True) == [3, 1]
    assert front(points, higher=False) == [3, 4, 2]
    assert front(np.empty((0, 2)), higher=True) == []
    assert front(points, higher=None) == []  # neither the highest nor the lowest is the best


def test_a_metric_without_a_direction_has_no_front(tmp_path):
    made = (record("rtn", bits, {"motion_energy": metric(3.0, 0.1, None)}) for bits in ("w4a8", "w8a8"))
    summary = summarise(load_results(write(tmp_path, *made)), ROWS)
    assert front_rows(summary.rows, "weight_bits", summary.quantity("motion_energy")) == []


@pytest.fixture
def study(tmp_path):
    """Four bit-widths whose quality rises, with a standard error of one."""
    values = {"w3a8": 18.5, "w4a8": 20.5, "w6a6": 23.0, "w8a8": 40.0}
    made = (record("rtn", bits, {"sqnr": metric(value, 1.0)}) for bits, value in values.items())
    return summarise(load_results(write(tmp_path, *made)), ROWS)


def test_the_smallest_and_what_its_error_bars_leave_open(study):
    picked = pick(study, bars_of(study, ["sqnr=20"], []), "weight_bits")
    assert picked.row["bits"] == "w4a8"  # by half a standard error
    assert picked.sure["bits"] == "w6a6"
    assert [row["bits"] for row in picked.near] == ["w3a8"]
    picked = pick(study, bars_of(study, ["sqnr=21"], []), "weight_bits")
    assert (picked.row["bits"], picked.sure["bits"]) == ("w6a6", "w6a6")
    assert [row["bits"] for row in picked.near] == ["w4a8"]


def test_of_equal_costs_the_better(tmp_path):
    write(tmp_path, *(record(name, "w4a8", {"sqnr": metric(value)}) for name, value in (("rtn", 21.0), ("awq", 24.0))))
    summary = summarise(load_results(tmp_path), ROWS)
    picked = pick(summary, bars_of(summary, ["sqnr=20"], []), "weight_bits")
    assert (picked.row["quantizer"], picked.sure) == ("awq", None)  # no error bars, no certainty


def test_a_metric_that_no_run_has_is_told(study):
    for row in study.rows:
        row["sqnr"] = None
    with pytest.raises(UserError, match="none of them measured sqnr: add it with eval=sqnr"):
        pick(study, bars_of(study, ["sqnr=20"], []), "weight_bits")
