"""Layers as they are written for OpenVINO: the simulated layers' numbers, on every grid that is taken."""

import pytest
import torch
from helpers.layers import IN, OUT, rounded, static
from torch import nn
from torch.testing import assert_close

from qdit.engine.emitted import Emitted, Steps, Values, inputs_of
from qdit.execution import executing
from qdit.nn.basis import Branch, Rotation, Scale, Shift
from qdit.nn.linear import QuantLinear, Shared
from qdit.nn.quantizers import DynamicQuantizer
from qdit.quant.affine import Affine, affine
from qdit.quant.spec import QuantSpec

CPU = torch.device("cpu")


def near(layer: QuantLinear, x: torch.Tensor, tolerance: float = 1e-5) -> None:
    with torch.no_grad(), executing("simulated", CPU):
        expected, found = layer(x), Emitted(layer)(x)
    assert found.dtype == x.dtype
    assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


DYNAMIC = ("symmetric", "symmetric_full", "asymmetric", "asymmetric_free", "asymmetric_clamped")


@pytest.mark.parametrize("weight", [{}, {"grid": "symmetric"}, {"granularity": "tensor"}, {"bits": 4}], ids=str)
@pytest.mark.parametrize("grid", DYNAMIC)
@pytest.mark.parametrize("bits", [8, 4])
def test_inputs_of_tokens(weight, grid, bits):
    layer, x = rounded(nn.Linear(IN, OUT), **weight), torch.randn(2, 5, IN) + 0.5
    layer.quantizer = Shared(DynamicQuantizer(QuantSpec(bits=bits, grid=grid)), 1)
    near(layer, x)
    near(layer, x[:, 0])


@pytest.mark.parametrize("weight", [{}, {"grid": "symmetric"}], ids=str)
@pytest.mark.parametrize(
    ("inputs", "written"),
    [
        (static(), Values),
        (static(grid="symmetric"), Values),
        (static(grid="unsigned"), Values),
        (static(bits=4), Steps),
        (static(grid="asymmetric_free", lo=1.0), Steps),  # its zero point is no code
    ],
)
def test_inputs_with_one_range(weight, inputs, written):
    layer, x = rounded(nn.Linear(IN, OUT, bias=False), **weight), torch.randn(2, 5, IN)
    layer.quantizer = inputs
    assert type(inputs_of(inputs)) is written
    near(layer, x)


def test_inputs_of_a_whole_tensor_that_are_found_at_run_time():
    layer = rounded(nn.Linear(IN, OUT))
    layer.quantizer = DynamicQuantizer(QuantSpec(bits=8, granularity="tensor"))
    near(layer, torch.randn(2, 5, IN))


def test_codes_that_are_written_are_those_of_the_grid():
    x, spec = torch.randn(7, IN), QuantSpec(bits=8)
    codes, step, zero_point = Steps(spec, None)(x)
    grid = affine(x.amin(-1, True), x.amax(-1, True), spec)
    assert isinstance(grid, Affine)
    assert torch.equal(codes, grid.encode(x))
    assert torch.equal(step, grid.scale)
    assert torch.equal(zero_point, grid.zero_point)


def test_what_is_done_before_and_beside_the_product():
    linear = nn.Linear(IN, OUT)
    linear.branch = Branch(torch.randn(OUT, 3), torch.randn(3, IN), None, torch.float32)
    signs = torch.randint(0, 2, (IN,), dtype=torch.int8) * 2 - 1
    changes = Scale(torch.rand(IN) + 0.5, torch.float32), Shift(torch.randn(IN), torch.float32), Rotation(signs, None)
    for rounds in (DynamicQuantizer(QuantSpec(bits=8)), static()):
        layer = rounded(linear)
        layer.quantizer = nn.Sequential(*changes, rounds)
        near(layer, torch.randn(2, 5, IN))


def test_patches_and_half_precision():
    layer = rounded(nn.Conv2d(4, OUT, 2, stride=2))
    layer.quantizer = static()
    near(layer, torch.randn(2, 4, 6, 6))
    layer = rounded(nn.Linear(IN, OUT).bfloat16())
    layer.quantizer = DynamicQuantizer(QuantSpec(bits=8))
    near(layer, torch.randn(2, 5, IN).bfloat16(), 1 / 128)
