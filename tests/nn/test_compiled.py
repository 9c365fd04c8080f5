"""Compiled networks: one graph with the same numbers, one for each group of timesteps; then the network as it was."""

import pytest
import torch
from torch import nn

from qdit.errors import UserError
from qdit.execution import executing, has_int8
from qdit.nn.clock import Clock
from qdit.nn.compiled import Compiled, calling
from qdit.nn.linear import QuantLinear, Shared
from qdit.nn.quantizers import DynamicQuantizer
from qdit.nn.switch import Now, TimedLinear
from qdit.quant.affine import affine
from qdit.quant.grid import Rounded
from qdit.quant.spec import QuantSpec, as_rows
from qdit.quant.time_groups import Groups

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not has_int8(CPU), reason="no int8 instructions here")


def layer(spec: QuantSpec, quantizer: nn.Module | None = None) -> QuantLinear:
    linear = nn.Linear(32, 32)
    rows = as_rows(linear.weight.detach(), spec)
    rounded = Rounded.of(linear.weight.detach(), affine(rows.amin(-1, True), rows.amax(-1, True), spec), spec)
    return QuantLinear(linear, rounded, quantizer or DynamicQuantizer(spec)).eval()


class Network(nn.Module):
    """Two readers of one input, and a layer behind them."""

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        shared = Shared(DynamicQuantizer(spec), 2)
        self.q, self.k, self.out = layer(spec, shared), layer(spec, shared), layer(spec)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.nn.functional.gelu(self.q(x) * self.k(x)))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("execution", ["int8", "simulated"])
@pytest.mark.parametrize("spec", [QuantSpec(bits=8), QuantSpec(bits=4, granularity="group", group_size=16)], ids=str)
def test_one_graph_gives_what_the_network_gives(spec, execution):
    network, x = Network(spec), torch.randn(2, 5, 32)
    with torch.no_grad(), executing(execution, CPU):
        compiled = Compiled(network, backend="eager")
        expected = network(x)
        with calling(compiled):
            assert torch.equal(network(x), expected)
            spent = compiled.seconds
            assert torch.equal(network(x), expected)
        assert 0 < spent == compiled.seconds
        assert network._compiled_call_impl is None
        with calling(None):
            assert torch.equal(network(x), expected)


def test_a_group_of_timesteps_has_a_graph_of_its_own():
    clock, spec = Clock(), QuantSpec(bits=8)
    now = Now(clock, Groups((500,)))
    network, x = TimedLinear([layer(spec), layer(spec)], (0, 1), now), torch.randn(2, 5, 32)
    compiled, seen = Compiled(network, backend="eager"), []
    with torch.no_grad():
        for time in (100, 900, 200):
            with clock.showing(torch.full((2,), time)):
                expected = network(x)
                with calling(compiled):
                    assert torch.equal(network(x), expected)
                seen.append(expected)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


class Breaking(nn.Module):
    """A network that chooses by its input's values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x


def test_what_is_no_graph_is_refused():
    network = Breaking()
    with calling(Compiled(network, backend="eager")), pytest.raises(UserError, match="compile=true: .*compile=false"):
        network(torch.ones(2))
    assert torch.equal(network(torch.ones(2)), 2 * torch.ones(2))
