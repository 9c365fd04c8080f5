"""What torchao's tensors can say of a layer, told from its form alone."""

import pytest

from qdit.exports.forms import BRANCH, FACTORS, ROTATION, Form
from qdit.exports.kinds import cures, kind_of, shared, why_not
from qdit.quant.spec import QuantSpec

TOKENS = QuantSpec(bits=8)
FULL = QuantSpec(bits=8, grid="symmetric_full")
STATIC = QuantSpec(bits=8, granularity="tensor", dynamic=False)
ROWS, SYMMETRIC = QuantSpec(bits=4), QuantSpec(bits=8, grid="symmetric")
GROUPS = QuantSpec(bits=4, granularity="group", group_size=16)
NAMES = {"int8": "Int8Tensor", "intx": "IntxUnpackedToInt8Tensor", None: None}
CASES = {
    "zero points of weights": (Form(weight=ROWS, inputs=TOKENS), "intx"),
    "a zero point at an end": (Form(weight=QuantSpec(bits=8, grid="unsigned"), inputs=TOKENS), "intx"),
    "none of them": (Form(weight=SYMMETRIC, inputs=TOKENS), "int8"),
    "static": (Form(weight=SYMMETRIC, inputs=STATIC), "int8"),
    "static and zero points": (Form(weight=ROWS, inputs=STATIC), None),
    "half steps": (Form(weight=SYMMETRIC, inputs=FULL), "int8"),
    "half steps and zero points": (Form(weight=ROWS, inputs=FULL), None),
    "factors": (Form(weight=SYMMETRIC, inputs=TOKENS, parts=(FACTORS,)), "int8"),
    "factors and zero points": (Form(weight=ROWS, inputs=TOKENS, parts=(FACTORS,)), None),
    "groups": (Form(weight=GROUPS, inputs=TOKENS), "intx"),
    "groups alone": (Form(weight=GROUPS, inputs=None, parts=(FACTORS,)), "int8"),
    "rows alone": (Form(weight=ROWS, inputs=None), "intx"),
    "a rotation": (Form(weight=SYMMETRIC, inputs=TOKENS, parts=(ROTATION,)), None),
    "a branch": (Form(weight=SYMMETRIC, inputs=TOKENS, parts=(BRANCH,)), None),
    "inputs alone": (Form(weight=None, inputs=TOKENS), None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_kind_that_has_a_place_for_all_of_a_form(name):
    form, expected = CASES[name]
    found = kind_of(form)
    assert (found.name if found else None) == NAMES[expected]


def test_symmetric_inputs_need_a_permission():
    form = Form(weight=SYMMETRIC, inputs=QuantSpec(bits=8, grid="symmetric"))
    assert kind_of(form) is None
    assert getattr(kind_of(form, near=True), "name", None) == "Int8Tensor"


def test_what_no_kind_has_is_said_once_and_what_differs_by_kind():
    rotated = Form(weight=SYMMETRIC, inputs=TOKENS, parts=(ROTATION,))
    assert why_not(rotated) == "torchao has no rotation of inputs at run time"
    assert [lack.what for lack in shared(rotated)] == [ROTATION]
    scaled = Form(weight=ROWS, inputs=TOKENS, parts=(FACTORS,))
    assert why_not(scaled) == (
        "its Int8Tensor has no zero points of weights (weight.grid=symmetric); its IntxUnpackedToInt8Tensor has no "
        "factors of inputs"
    )


def test_the_fewest_words_that_help_come_first():
    inputs = QuantSpec(bits=8, granularity="group", group_size=16)
    form = Form(weight=GROUPS, inputs=inputs)
    assert cures([form]) == [("activation=token",), ("activation=token", "weight=row", "weight.grid=symmetric")]
    assert cures([form, Form(weight=GROUPS, inputs=inputs, parts=(BRANCH,))]) == []
