"""Objects as plain values and tensors: what comes back, and what is refused."""

import json

import pytest
import torch
from checkpoints import refuse
from torch import nn

from qdit.errors import UserError
from qdit.plain import Reader, Writer, find_class
from qdit.quant.spec import QuantSpec


class Outside(nn.Module):
    pass


def test_only_classes_of_qdit_and_torch_are_saved_and_made():
    with pytest.raises(UserError, match=r"site.quantizer is a .*Outside, which cannot be saved"):
        Writer().value(Outside(), "site.quantizer")
    with pytest.raises(UserError, match="x.see is a .*function, which cannot be saved"):
        Writer().value({"see": refuse}, "x")
    for name in ("os.system", "subprocess.Popen", "torch.load", "qdit.checkpoint.Path", "qdit.errors.UserError"):
        with pytest.raises(ValueError, match="cannot be loaded"):
            find_class(name)


def test_plain_values_tensors_and_shared_objects_come_back():
    writer, spec = Writer(), QuantSpec(bits=4)
    linear = nn.Linear(2, 3, bias=False).requires_grad_(False).eval()
    value = {"a": [1, 2.5, None, True], (1, "b"): (spec, spec), "linear": linear, "dtype": torch.bfloat16}
    tree = json.loads(json.dumps(writer.value(value, "it")))
    found = Reader(writer.tensors, torch.device("cpu")).value(tree)
    assert found.keys() == value.keys()
    assert found["a"] == value["a"]
    assert found[1, "b"] == (spec, spec)
    assert found[1, "b"][0] is found[1, "b"][1]
    assert found["dtype"] is torch.bfloat16
    assert not found["linear"].training
    assert torch.equal(found["linear"](torch.ones(2)), linear(torch.ones(2)))


def test_what_belongs_to_the_base_model_is_given_and_not_made_again():
    writer, mine = Writer(), QuantSpec(bits=4)
    tree = writer.value({"a": QuantSpec(bits=8), "b": 1}, "it")
    assert Reader({}, torch.device("cpu"), {QuantSpec: mine}).value(tree)["a"] is mine
