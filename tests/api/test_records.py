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


def test_a_difference_needs_one_protocol_and_the_values_of_samples(runs):
    frame = qdit.results(runs)
    one, other = frame[frame.quantizer == "rtn"], frame[frame.quantizer == "q_dit"]
    with pytest.raises(UserError, match="sqnr was not kept sample by sample"):
        qdit.difference(one, other)
    with pytest.raises(UserError, match="2 protocols"):
        qdit.difference(one, other.assign(protocol_id="another"))


def test_a_difference_is_over_several_seeds_of_noise():
    frame = qdit.results("experiments/comparison/results", study="hybrid_parts").query("bits == 'w4a8'")
    one, other = frame[frame.quantizer == "5_renormalised"], frame[frame.quantizer == "4_probabilities"]
    mean, error = qdit.difference(one, other)
    assert set(one.seed) == set(other.seed) == {0, 1}
    alone = [qdit.difference(one[one.seed == seed], other[other.seed == seed])[0] for seed in (0, 1)]
    assert mean == pytest.approx(sum(alone) / 2)
    assert error > 0
