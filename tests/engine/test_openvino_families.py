"""Tiny networks of every family through OpenVINO: the simulated numbers, all quantized layers on integers."""

import pytest
import torch
from helpers.families import FAMILIES
from helpers.layers import rounded
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdit.engine.openvino import OpenVINO
from qdit.errors import UserError
from qdit.execution import has_int8
from qdit.nn.compiled import calling
from qdit.nn.quantizers import DynamicQuantizer
from qdit.nn.replace import put
from qdit.quant.spec import QuantSpec

pytest.importorskip("openvino")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_int8(torch.device("cpu")), reason="no int8 instructions here"),
]
REFUSED = {"qwen_image": "ComplexTypeMark"}
"""Families that OpenVINO's frontend cannot read, and what it names: tables of complex numbers."""


def random(x: Tensor) -> Tensor:
    return torch.randn(x.shape) if x.is_floating_point() else torch.ones(x.shape, dtype=x.dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_runs_on_integers_or_is_refused(family):
    kind, config, inputs = FAMILIES[family]()
    network = kind(**config).eval().requires_grad_(False)
    given = pytree.tree_map_only(Tensor, random, inputs)
    layers = {name: each for name, each in network.named_modules() if type(each) is nn.Linear and "blocks" in name}
    quantized = {name: rounded(each) for name, each in layers.items()}
    for each in quantized.values():
        each.quantizer = DynamicQuantizer(QuantSpec(bits=8))
    with torch.no_grad():
        put(network, quantized)
        expected, engine = network(**given, return_dict=False)[0], OpenVINO(network)
        with calling(engine):
            if told := REFUSED.get(family):
                with pytest.raises(UserError, match=f"cannot be exported .*{told}"):
                    network(**given)
                return
            found = network(**given, return_dict=False)[0]
    assert engine.layers == {"openvino int8": len(quantized)}
    assert (found - expected).norm() < 1e-3 * expected.norm()
