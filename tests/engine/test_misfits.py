"""What OpenVINO cannot run: each is named, with what there may be instead and a word to try."""

import pytest

from qdit.engine.misfits import misfits, problem
from qdit.exports.forms import BRANCH, FACTORS, OPERANDS, TIMED, Form
from qdit.quant.spec import QuantSpec

ROW = QuantSpec(bits=8)
TENSOR = QuantSpec(bits=8, granularity="tensor", dynamic=False)


@pytest.mark.parametrize("inputs", [ROW, TENSOR, QuantSpec(bits=4, grid="symmetric")], ids=str)
@pytest.mark.parametrize("weight", [ROW, QuantSpec(bits=4), QuantSpec(bits=8, granularity="tensor")], ids=str)
def test_integers_with_one_scale_a_product_run(weight, inputs):
    assert not list(misfits(Form(weight=weight, inputs=inputs, parts=(FACTORS, BRANCH))))


def test_full_precision_runs():
    assert problem({"a": Form(weight=None, inputs=None), "b": Form(weight=None, inputs=None, parts=(FACTORS,))}) is None


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (Form(weight=ROW, inputs=None), "inputs in full precision beside rounded weights"),
        (Form(weight=None, inputs=ROW), "weights in full precision beside rounded inputs"),
        (Form(weight=QuantSpec(bits=4, granularity="group", group_size=16), inputs=ROW), "try weight=row"),
        (Form(weight=ROW, inputs=QuantSpec(bits=8, granularity="group", group_size=16)), "try activation=token"),
        (Form(weight=QuantSpec(bits=4, grid="e2m1"), inputs=ROW), "weights in e2m1, where it takes integers"),
        (Form(weight=ROW, inputs=QuantSpec(bits=8, grid="e4m3")), "inputs in e4m3"),
        (Form(weight=ROW, inputs=QuantSpec(bits=8, granularity="tensor", dynamic=False, time_groups=4)), "time=one"),
        (Form(weight=ROW, inputs=QuantSpec(bits=8, granularity="tensor", grid="two_sided", dynamic=False)), "tensor"),
        (Form(weight=ROW, inputs=QuantSpec(bits=8, columns=16)), "activation.columns=joined"),
        (
            Form(weight=None, inputs=None, parts=(TIMED,)),
            f"{TIMED}, where it takes one weight a layer (try execution=auto)",
        ),
        (Form(weight=None, inputs=None, parts=(OPERANDS,)), "attention=none"),
        (Form(weight=ROW, inputs=ROW, parts=("Strange at run time",)), "Strange at run time, where it takes inputs"),
    ],
)
def test_misfits_are_named_with_what_to_try(form, told):
    found = problem({"first": form, "second": form, "fine": Form(weight=ROW, inputs=ROW)})
    assert found is not None
    assert found.startswith("execution=openvino cannot run this recipe: first and 1 more: ")
    assert told in found


def test_every_kind_is_in_one_message():
    group = QuantSpec(bits=4, granularity="group", group_size=16)
    found = problem({"a": Form(weight=group, inputs=ROW), "b": Form(weight=ROW, inputs=None)})
    assert found is not None
    assert "a: weights in groups of 16" in found
    assert "; b: inputs in full precision" in found
