"""Runs, results and tables in Python."""

import pytest

import qdit
from qdit.errors import UserError
from qdit.tables import build_table, load_results


def test_results_and_tables_are_those_of_the_command_line(runs):
    frame = qdit.results(runs)
    assert frame.equals(load_results(runs))
    assert qdit.table(frame, cols="bits", metrics=["sqnr"]) == build_table(frame, cols="bits", metrics=["sqnr"])


def test_a_run_is_refused_as_on_the_command_line():
    with pytest.raises(UserError, match="bits"):
        qdit.run("bits.weight=1", "dry=true")
