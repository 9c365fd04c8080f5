"""Products of FP8 numbers: the numbers are those of simulated quantization, and their product is its product."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from qdit import execution
from qdit.errors import UserError
from qdit.execution import FP8, INT8, SIMULATED, executing, faster, has_fp8
from qdit.nn.linear import QuantLinear, Shared
from qdit.nn.quantizers import DynamicQuantizer
from qdit.quant import eights
from qdit.quant.formats import FLOATS
from qdit.quant.grid import Rounded, covering, extent, fake_quantize
from qdit.quant.spec import QuantSpec, as_rows

CPU, SPEC = torch.device("cpu"), QuantSpec(bits=8, grid="e4m3")
WILD = torch.tensor([0.0, 1e-30, -1e-3, 17.0, 447.9, 464.1, -1e9, 2.0**-9, 2.0**-10, 3 * 2.0**-10])


def rounded(weight, spec=SPEC):
    rows = as_rows(weight, spec)
    return Rounded.of(weight, covering(rows, *extent(rows, spec), spec), spec)


def layer(out=32, channels=48, quantizer=None, spec=SPEC):
    linear = nn.Linear(channels, out)
    return QuantLinear(linear, rounded(linear.weight.detach(), spec), quantizer or DynamicQuantizer(SPEC))


@pytest.fixture
def on_eights(monkeypatch):
    """As on a device that has such products; the CPU has them, too, though slowly."""
    monkeypatch.setattr(execution, "_way", FP8)


def test_numbers_are_the_nearest_levels():
    random = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 100
    for x in (WILD, random):
        assert torch.equal(eights.nearest(x).float(), FLOATS["e4m3"].nearest(x.clone()))


def test_inputs_and_weights_are_those_of_the_simulation():
    x = torch.cat([torch.randn(6, 48), torch.zeros(1, 48), torch.randn(1, 48) * 1e-20])
    found = eights.covered(x, SPEC)
    assert torch.equal(found.numbers.float() * found.scale, fake_quantize(x, SPEC))
    weight = rounded(torch.randn(32, 48))
    kept = eights.weight_eights(weight)
    assert torch.equal(kept.numbers.float() * kept.scale, weight.weight)
    assert kept.numbers.data_ptr() == weight.codes.data_ptr()


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_dequantized_values(bias):
    x, weight = torch.randn(7, 48), rounded(torch.randn(32, 48))
    b = torch.randn(32) if bias else None
    found = eights.product(eights.covered(x, SPEC), eights.weight_eights(weight), b)
    expected = fake_quantize(x, SPEC).double() @ weight.weight.double().T + (0 if b is None else b)
    assert_close(found.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.usefixtures("on_eights")
def test_layers_multiply_them_behind_a_change_of_basis_and_shared():
    for quantizer in (None, Shared(nn.Sequential(nn.Linear(48, 48), DynamicQuantizer(SPEC)), 2)):
        module, x = layer(quantizer=quantizer), torch.randn(2, 5, 48)
        assert module.multiplied == "fp8"
        with torch.no_grad():
            found = module(x)
            with executing("simulated", CPU):
                assert module.multiplied == "simulated"
                assert_close(found, module(x), rtol=0, atol=1e-5)
            assert torch.equal(module.bfloat16()(x.bfloat16()), module(x.bfloat16()))
            assert module(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.usefixtures("on_eights")
def test_what_has_no_such_product_is_simulated():
    blocks = QuantSpec(bits=8, grid="e4m3", granularity="group", group_size=32, scale="e8m0")
    for spec in (blocks, QuantSpec(bits=8, granularity="tensor", grid="e4m3"), QuantSpec(bits=8, grid="e5m2")):
        assert layer(channels=64, spec=spec).multiplied == "simulated"
        assert layer(channels=64, quantizer=DynamicQuantizer(spec)).multiplied == "simulated"
    assert layer(out=24).multiplied == layer(channels=40).multiplied == "simulated"  # no multiples of 16
    module, x = layer(), torch.randn(2, 48, requires_grad=True)
    module(x).sum().backward()  # gradients go the simulated way
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_devices_without_it_refuse_and_auto_leaves_what_cannot_go_on(monkeypatch):
    with pytest.raises(UserError, match=r"execution=fp8: cpu has no FP8 product here.*8\.9.*execution=auto"):
        executing("fp8", CPU).__enter__()
    monkeypatch.setattr(execution, "has_int8", lambda device: True)
    monkeypatch.setattr(execution.native, "available", lambda: True)
    with executing("auto", CPU, begun="fp8"):
        assert execution.way() is INT8
    monkeypatch.setattr(execution, "has_fp8", lambda device: True)
    assert faster(CPU) is FP8
    for begun in (FP8, INT8, SIMULATED):
        with executing("auto", CPU, begun.name):
            assert execution.way() is begun


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpus_have_the_numbers_of_the_cpu(dtype):
    device = torch.device("cuda")
    if not has_fp8(device):
        pytest.skip("compute capability below 8.9")
    x, module = torch.randn(64, 128, dtype=dtype), layer(64, 128).to(dtype)
    here, there = eights.covered(x, SPEC), eights.covered(x.to(device), SPEC)
    assert torch.equal(here.numbers.float(), there.numbers.cpu().float())
    assert torch.equal(here.scale, there.scale.cpu())
    with torch.no_grad(), executing("simulated", CPU):
        expected = module(x).float()
    weight = eights.weight_eights(module.rounded)
    on_gpu = eights.Eights(weight.numbers.to(device), weight.scale.to(device))
    found = eights.product(there, on_gpu, module.bias.float().to(device), dtype).cpu().float()
    near = 1e-3 if dtype == torch.float32 else 2e-2  # the sums of tensor cores have fewer bits than float32
    assert_close(found, expected, rtol=0, atol=near * expected.abs().max().item())
