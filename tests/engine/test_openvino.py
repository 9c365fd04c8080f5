"""OpenVINO runs a network's quantized layers on integers, with the numbers of simulated ones, layer by layer."""

import pytest
import torch
from helpers.layers import IN, OUT, rounded, static
from torch import nn
from torch.testing import assert_close

from qdit.engine.openvino import OpenVINO, in_float32
from qdit.errors import UserError
from qdit.execution import executing, has_int8
from qdit.nn.compiled import calling
from qdit.nn.linear import QuantLinear, Shared
from qdit.nn.quantizers import DynamicQuantizer
from qdit.quant.spec import QuantSpec

CPU = torch.device("cpu")
pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(not has_int8(CPU), reason="no int8 instructions here")


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def layer(inputs: nn.Module, linear: nn.Module | None = None, **weight) -> QuantLinear:
    made = rounded(linear or nn.Linear(IN, OUT), **weight)
    made.quantizer = inputs
    return made.eval()


INPUTS = {
    "static": static,
    "static, 4 bits": lambda: static(bits=4),
    "static, symmetric": lambda: static(grid="symmetric"),
    "tokens": lambda: DynamicQuantizer(QuantSpec(bits=8)),
    "tokens, symmetric": lambda: DynamicQuantizer(QuantSpec(bits=8, grid="symmetric")),
    "tokens, 4 bits": lambda: DynamicQuantizer(QuantSpec(bits=4, grid="symmetric_full")),
}


@pytest.mark.parametrize("weight", [{}, {"grid": "symmetric"}, {"bits": 4}], ids=str)
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_is_the_simulated_one_on_integers(weight, inputs, dtype):
    linear = nn.Linear(64, 96).to(dtype)
    network, x = nn.Sequential(layer(INPUTS[inputs](), linear, **weight)), torch.randn(3, 40, 64).to(dtype)
    # In bfloat16 simulated layers round values and weights once more, and qdit's integers do not.
    with torch.no_grad(), executing("simulated" if dtype == torch.float32 else "int8", CPU):
        expected, engine = network(x), OpenVINO(network)
        with calling(engine):
            found = network(x)
    assert engine.layers == {"openvino int8": 1}
    assert found.dtype == dtype
    assert difference(found, expected) < 1e-3  # flips of rounding, of a step each, are few


class Network(nn.Module):
    """Two readers of one input, a layer behind them, an argument that nobody reads, and one that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        shared = Shared(static(), 2)
        self.q, self.k, self.full = layer(shared), layer(shared), nn.Linear(OUT, IN)
        self.out = layer(DynamicQuantizer(QuantSpec(bits=8)), nn.Linear(IN, OUT))

    def forward(self, x, unread, times, scale=1.0, return_dict=True):
        mixed = self.full(nn.functional.gelu(self.q(x) * self.k(x)))
        made = self.out(mixed) * scale + times[:, None, None]
        return {"sample": made} if return_dict else (made, times)


@pytest.fixture
def network():
    return Network().eval().requires_grad_(False)


def inputs(batch: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(batch, 5, IN), torch.zeros(batch), torch.arange(batch)


def test_a_network_is_called_as_before_and_afterwards_is_itself(network):
    x = inputs(2)
    with torch.no_grad(), executing("simulated", CPU):
        whole, parts = network(*x), network(*x, scale=2.0, return_dict=False)
        engine = OpenVINO(network)
        with calling(engine):
            found = network(*x)
            assert_close(found["sample"], whole["sample"], rtol=0.02, atol=0.02)
            spent = engine.seconds
            assert torch.equal(network(*x)["sample"], found["sample"])
            assert 0 < spent == engine.seconds
            made, times = network(*x, scale=2.0, return_dict=False)
            assert engine.seconds > spent
            assert len(network(*inputs(3))["sample"]) == 3
        assert_close(made, parts[0], rtol=0.02, atol=0.02)
        assert torch.equal(times, x[2])
        assert engine.layers == {"openvino int8": 3}
        assert network._compiled_call_impl is None
        assert isinstance(network.q, QuantLinear)
        assert torch.equal(network(*x)["sample"], whole["sample"])


def test_outputs_are_not_overwritten_by_the_next_call(network):
    with torch.no_grad(), calling(OpenVINO(network)):
        first = network(*inputs(2))["sample"]
        kept = first.clone()
        network(*inputs(2))
    assert torch.equal(first, kept)


def test_layers_that_do_not_run_on_integers_are_counted_as_such(network):
    engine = OpenVINO(network, {"LP_TRANSFORMS_MODE": "NO"})
    with torch.no_grad(), calling(engine):
        network(*inputs(2))
    assert engine.layers == {"openvino float": 3}


def test_layers_that_it_has_no_product_for_are_refused_before_anything_is_exported(network):
    spec = QuantSpec(bits=8, granularity="group", group_size=16)
    network.out = layer(DynamicQuantizer(spec), nn.Linear(IN, OUT), granularity="group", group_size=16)
    with pytest.raises(UserError, match="out: weights in groups of 16.*weight=row.*out: inputs in groups"):
        OpenVINO(network)


def test_tensors_of_16_bits_are_float32_for_a_while(network):
    network.full.bfloat16()
    network.register_buffer("places", torch.arange(3, dtype=torch.float64))
    kept = network.full.weight
    with in_float32(network):
        assert network.full.weight.dtype == torch.float32
        assert torch.equal(network.full.weight, kept.float())
        assert network.places.dtype == torch.float64
    assert network.full.weight is kept


class Breaking(nn.Module):
    """A network that chooses by its input's values."""

    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


def test_what_is_no_graph_is_refused():
    network = Breaking()
    with calling(OpenVINO(network)), pytest.raises(UserError, match="cannot be exported .*; use execution=auto"):
        network(torch.ones(2))
    assert torch.equal(network(torch.ones(2)), 2 * torch.ones(2))
