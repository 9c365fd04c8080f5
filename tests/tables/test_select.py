"""Conditions that choose runs."""

import pytest

from qdit.errors import UserError
from qdit.tables import load_results, where


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
        ("bits=w3a8", "leaves no run; bits takes w16a16, w4a8, w8a8"),
    ],
)
def test_where_refuses_with_advice(runs, condition, message):
    with pytest.raises(UserError, match=message):
        where(load_results(runs), [condition])
