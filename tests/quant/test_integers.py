"""Products of integer codes against products of the values that they stand for."""

from itertools import product as pairs

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdit.errors import UserError
from qdit.execution import INT8, INT8_ROWS, SIMULATED, executing, has_int8, tune_cpu, way
from qdit.nn.clock import Clock
from qdit.nn.linear import QuantLinear, Shared
from qdit.nn.quantizers import DynamicQuantizer, StaticQuantizer, quantizer_of
from qdit.quant.affine import affine
from qdit.quant.grid import Rounded, fake_quantize
from qdit.quant.spec import QuantSpec, as_rows
from qdit.quant.time_groups import Groups

CPU = torch.device("cpu")
GRIDS = ("asymmetric", "asymmetric_free", "asymmetric_clamped", "symmetric", "symmetric_full")
FINENESS = ({"granularity": "tensor"}, {"granularity": "row"}, {"granularity": "group", "group_size": 16})
pytestmark = pytest.mark.skipif(not has_int8(CPU), reason="no int8 instructions here")


def rounded(weight, spec) -> Rounded:
    rows = as_rows(weight, spec)
    return Rounded.of(weight, affine(rows.amin(-1, True), rows.amax(-1, True), spec), spec)


def layer(bits, fineness, grid, quantizer, bias=True, channels=64) -> QuantLinear:
    torch.manual_seed(bits)
    linear = nn.Linear(channels, 24, bias=bias)
    linear.weight.data += 0.05  # zero points that are not in the middle
    spec = QuantSpec(bits=bits, grid=grid, **fineness)
    return QuantLinear(linear, rounded(linear.weight.detach(), spec), quantizer).eval()


def both(module, x):
    """The simulated output and that of integers."""
    with torch.no_grad():
        simulated = module(x)
        with executing("int8", CPU):
            assert way() is INT8
            return simulated, module(x)


def close(simulated, integers):
    torch.testing.assert_close(integers, simulated, atol=2e-5 * simulated.abs().max().item(), rtol=0)


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
@pytest.mark.parametrize("grids", pairs(GRIDS, GRIDS), ids="-".join)
@pytest.mark.parametrize(
    "finenesses", list(pairs(FINENESS, FINENESS)), ids=lambda p: "-".join(f["granularity"] for f in p)
)
def test_dynamic_inputs(bits, grids, finenesses):
    quantizer = DynamicQuantizer(QuantSpec(bits=bits, grid=grids[1], **finenesses[1]))
    module = layer(bits, finenesses[0], grids[0], quantizer)
    x = torch.randn(3, 7, 64) + 0.3
    assert module.has_integers
    close(*both(module, x))


@pytest.mark.parametrize("sizes", [(16, 32), (32, 16), (48, 32), (32, 48)], ids=str)
@pytest.mark.parametrize("grid", ["asymmetric_free", "symmetric"])
def test_weights_and_inputs_in_groups_of_other_sizes(sizes, grid):
    weight, inputs = ({"granularity": "group", "group_size": size} for size in sizes)
    quantizer = DynamicQuantizer(QuantSpec(bits=8, grid=grid, **inputs))
    x = torch.randn(5, 96) * torch.logspace(-1, 1, 96)
    close(*both(layer(8, weight, grid, quantizer, channels=96), x))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("grid", ["asymmetric", "symmetric", "unsigned"])
def test_static_inputs(bits, grid):
    spec = QuantSpec(bits=bits, granularity="tensor", grid=grid, dynamic=False)
    x = torch.randn(3, 7, 64).abs() - 0.2
    quantizer = StaticQuantizer(spec, affine(torch.tensor([[-0.2]]), torch.tensor([[1.5]]), spec))
    close(*both(layer(8, FINENESS[1], "asymmetric", quantizer, bias=False), x))


def test_a_grid_for_each_samples_time():
    clock = Clock()
    spec = QuantSpec(bits=8, granularity="tensor", dynamic=False, time_groups=2)
    grids = [affine(torch.tensor([[lo]]), torch.tensor([[hi]]), spec) for lo, hi in ((-1.0, 2.0), (-3.0, 0.5))]
    module = layer(8, FINENESS[2], "asymmetric", quantizer_of(spec, grids, Groups((500,)), clock))
    with clock.showing(torch.tensor([10, 900, 510])):
        close(*both(module, torch.randn(3, 7, 64)))


def test_the_output_is_exact_where_floats_are():
    """Scales that are powers of two leave nothing to round: both ways give the same bits."""
    spec = QuantSpec(bits=8, grid="symmetric")
    module = layer(8, FINENESS[1], "symmetric", DynamicQuantizer(spec), bias=False)
    step = torch.full_like(module.rounded.grid.scale, 2.0**-7)
    weight = Rounded(module.rounded.codes, type(module.rounded.grid)(step, step * 0, -128, 127), spec)
    module = QuantLinear(module, weight, DynamicQuantizer(spec))
    x = torch.randint(-127, 128, (5, 64)).float()
    x[:, 0] = 127.0
    simulated, integers = both(module, x)
    assert torch.equal(simulated, integers)


def test_a_patch_embedding_and_a_shared_input():
    conv = nn.Conv2d(4, 24, 2, stride=2)
    spec = QuantSpec(bits=8)
    module = QuantLinear(conv, rounded(conv.weight.detach().flatten(1), spec), DynamicQuantizer(spec))
    close(*both(module, torch.randn(2, 4, 8, 8)))
    shared = Shared(nn.Sequential(nn.Identity(), DynamicQuantizer(spec)), 2)
    one, two = (layer(bits, FINENESS[1], "asymmetric", shared) for bits in (4, 8))
    x = torch.randn(2, 5, 64)
    with torch.no_grad(), executing("int8", CPU):
        together = one(x), two(x)
    assert shared._input is None
    alone = [F.linear(fake_quantize(x, spec), m.weight, m.bias) for m in (one, two)]
    for made, expected in zip(together, alone, strict=True):
        close(expected.detach(), made)


def test_zero_points_far_off_the_codes():
    """Values far from 0 on a fine grid: 8 bits between 10 and 11 have zero points around -2,550."""
    spec = QuantSpec(bits=8, grid="asymmetric_free")
    module = layer(8, FINENESS[1], "asymmetric_free", DynamicQuantizer(spec))
    module = QuantLinear(module, rounded(torch.rand(24, 64) + 10, spec), module.quantizer)
    close(*both(module, torch.rand(5, 64) + 10))


def test_inputs_of_16_bits_stay_simulated():
    assert not layer(4, FINENESS[1], "asymmetric", None).has_integers


def test_groups_may_be_simulated_while_rows_are_integers(monkeypatch):
    monkeypatch.setattr("qdit.execution.faster", lambda device: INT8_ROWS)
    x = torch.randn(3, 64)
    for fineness in FINENESS:
        module = layer(8, fineness, "asymmetric", DynamicQuantizer(QuantSpec(bits=8, **fineness)))
        simulated, integers = both(module, x)
        with torch.no_grad(), executing("auto", CPU):
            groups = fineness["granularity"] == "group"
            assert module.multiplied == ("simulated" if groups else "int8")
            assert torch.equal(module(x), simulated if groups else integers)


def test_gradients_go_the_simulated_way():
    module = layer(8, FINENESS[1], "asymmetric", None)
    module.quantizer = nn.Identity()
    x = torch.randn(2, 64, requires_grad=True)
    with executing("int8", CPU):
        module(x).sum().backward()
    assert x.grad is not None


def test_the_switch_goes_back_and_refuses_what_the_device_cannot():
    with executing("int8", CPU), executing("simulated", CPU):
        assert way() is SIMULATED
    assert way() is SIMULATED
    with pytest.raises(UserError, match="execution=int8: meta"), executing("int8", torch.device("meta")):
        pass


def test_a_tuned_process_keeps_float32():
    tune_cpu()
    x, y = torch.randn(2, 300, 256, dtype=torch.float64)
    error = ((x.float() @ y.float().T) - x @ y.T).abs().amax() / (x @ y.T).abs().amax()
    assert error < 1e-5  # bfloat16 products have 1e-3
