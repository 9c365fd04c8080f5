"""Fitted recipes through OpenVINO, layer by layer, on the inputs that the simulated network gives each."""

import pytest
import torch
from torch import Tensor, nn

import qdit
from qdit.engine.openvino import OpenVINO
from qdit.execution import executing, has_int8
from qdit.nn.compiled import calling
from qdit.nn.linear import QuantLinear

CPU = torch.device("cpu")
pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(not has_int8(CPU), reason="no int8 instructions here")


class Each(nn.Module):
    """Layers, each with an input of its own."""

    def __init__(self, layers) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("vidit_q", marks=pytest.mark.slow),  # a rotation and factors at run time
        pytest.param(  # branches
            "svdquant weight=row weight.group_size=null activation=token activation.group_size=null",
            marks=pytest.mark.slow,
        ),
        "ptq4dit attention=none rounding=nearest",  # static ranges of all layers, the patch embedding too
    ],
)
def test_every_layer_of_a_recipe(words, tiny_pipe):
    network, given = tiny_pipe.transformer, (torch.randn(2, 4, 8, 8), torch.tensor([300, 700]), torch.arange(2))
    recipe, *overrides = words.split()
    data = qdit.calibrate(tiny_pipe, num_samples=8, steps=4)
    qdit.quantize(network, recipe, *overrides, "calibration.num_samples=8", bits="w4a8", data=data)
    layers = {name: each for name, each in network.named_modules() if isinstance(each, QuantLinear)}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0], y)}))
    with torch.no_grad(), executing("simulated", CPU):
        network(given[0], timestep=given[1], class_labels=given[2])
        each = Each(layers.values())
        engine = OpenVINO(each)
        with calling(engine):
            found = each(*(seen[name][0] for name in layers))
    assert engine.layers == {"openvino int8": len(layers)}
    for name, y in zip(layers, found, strict=True):
        expected = seen[name][1]
        assert (y - expected).norm() < 2e-3 * expected.norm(), name
