"""Conditions that choose runs."""

import pytest

from qdit.errors import UserError
from qdit.tables import load_results, where
from qdit.tables.select import at_bits


def test_blanks_beside_values_are_no_part_of_them(runs):
    frame = where(load_results(runs), ["bits=w4a8", "quantizer=rtn, q_dit"])
    assert sorted(frame["quantizer"]) == ["fp", "q_dit", "rtn"]


def test_where_keeps_the_full_precision_of_what_is_left(runs):
    frame = where(load_results(runs), ["bits=w4a8", "quantizer=rtn,q_dit", "sampler.steps=20"])
    assert sorted(zip(frame["quantizer"], frame["bits"], strict=True)) == [
        ("fp", "w16a16"),
        ("q_dit", "w4a8"),
        ("rtn", "w4a8"),
    ]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("bits", "write key=value"),
        ("bitz=w4a8", r"'bitz' \(did you mean bits"),
        (
            "quantizer=rtn,q_ditt",
            r"no run has 'q_ditt' \(did you mean q_dit, ptq4dit\?\); quantizer takes fp, ptq4dit, q_dit, rtn",
        ),
        ("bits=w3a8", "leaves no run; bits takes w16a16, w4a8, w8a8"),
    ],
)
def test_where_refuses_with_advice(runs, condition, message):
    with pytest.raises(UserError, match=message):
        where(load_results(runs), [condition])


def test_at_bits_keeps_what_costs_alike_with_its_full_precision(runs):
    kept = at_bits(load_results(runs), "3.9:4.1")  # a run that failed has no bits
    assert sorted(zip(kept["quantizer"], kept["bits"], strict=True)) == [
        ("fp", "w16a16"),
        ("q_dit", "w4a8"),
        ("rtn", "w4a8"),
    ]


@pytest.mark.parametrize(("span", "message"), [("4.4", "write LOW:HIGH"), ("5:6", "weights have 4.0, 8.0, 16.0 bits")])
def test_at_bits_refuses_with_advice(runs, span, message):
    with pytest.raises(UserError, match=message):
        at_bits(load_results(runs), span)
