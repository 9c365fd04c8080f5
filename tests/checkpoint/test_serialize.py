"""Objects as plain values and tensors: what comes back, and what is refused."""

import json

import pytest
import torch
from helpers.checkpoints import refuse
from torch import nn

from qdit.checkpoint.known import declare, find_class
from qdit.checkpoint.serialize import Reader, Writer
from qdit.errors import UserError
from qdit.quant.spec import QuantSpec


class Outside(nn.Module):
    pass


def test_only_classes_of_qdit_and_torch_are_saved_and_made():
    with pytest.raises(UserError, match=r"site.quantizer is a .*Outside, which cannot be saved"):
        Writer().value(Outside(), "site.quantizer")
    with pytest.raises(UserError, match="x.see is a .*function, which cannot be saved"):
        Writer().value({"see": refuse}, "x")
    for name in (
        "os.system",
        "subprocess.Popen",
        "torch.load",
        "qdit.checkpoint.checkpoint.Path",
        "qdit.errors.UserError",
    ):
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


@declare("scale", "size")
class Mine(nn.Module):
    """A quantizer of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 3
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x):
        return x * self.scale


def saved() -> dict:
    writer = Writer()
    return {"tree": json.loads(json.dumps(writer.value(Mine(), "mine"))), "tensors": writer.tensors}


def read(made: dict):
    return Reader(made["tensors"], torch.device("cpu")).value(made["tree"])


def test_a_class_of_ones_own_is_saved_once_it_is_declared():
    assert read(saved())(torch.ones(1)).item() == 2
    with pytest.raises(TypeError):
        declare()(int)
    extra = Mine()
    vars(extra)["forward"] = print
    with pytest.raises(UserError, match="mine.forward is a .*, which cannot be saved"):
        Writer().value(extra, "mine")
    extra = Mine()
    vars(extra)["more"] = 1
    with pytest.raises(UserError, match=r"mine cannot be saved: Mine has other members \(more\)"):
        Writer().value(extra, "mine")


@pytest.mark.parametrize(
    "name",
    ["load", "nn", "Tensor", "ops", "__doc__", "float32.__class__", "hub", "", None, 3],
)
def test_a_dtype_is_a_dtype_and_nothing_else_of_torch(name):
    with pytest.raises(Reader.WRONG):
        Reader({}, torch.device("cpu")).value({"dtype": name})


@pytest.mark.parametrize("name", ["forward", "__class__", "_modules", "codes", "has_codes", "training", "x"])
def test_attributes_are_those_of_the_class(name):
    made = saved()
    made["tree"]["state"]["attributes"][name] = {"dtype": "float32"}
    with pytest.raises(ValueError, match="Mine has other members"):
        read(made)
    made = saved()
    made["tree"]["state"]["attributes"][name] = made["tree"]["state"]["attributes"].pop("size")
    with pytest.raises(ValueError, match="Mine has other members"):
        read(made)


def test_containers_hold_numbered_modules_only():
    writer = Writer()
    tree = writer.value(nn.Sequential(nn.Identity()), "it")
    tree["state"]["children"]["forward"] = tree["state"]["children"].pop("0")
    with pytest.raises(ValueError, match="Sequential has other members"):
        Reader({}, torch.device("cpu")).value(tree)


def test_what_a_dataclass_refuses_is_refused_when_it_is_read():
    tree = Writer().value(QuantSpec(bits=4), "it")
    tree["state"]["bits"] = 99
    with pytest.raises(UserError, match="bits=99"):
        Reader({}, torch.device("cpu")).value(tree)
