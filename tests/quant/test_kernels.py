"""The compiled kernel as operators: the bits of torch's passes, of float32 and bfloat16, and shapes for graphs."""

from typing import get_args

import pytest
import torch

from qdit.quant import kernels, native
from qdit.quant.integers import covered, encoded
from qdit.quant.spec import Grid, QuantSpec

compiled = pytest.mark.skipif(not native.available(), reason="no compiler, or no instructions for the kernel")


def rows(dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.randn(37, 50) * torch.logspace(-3, 3, 37).unsqueeze(1) + 0.1
    x[3], x[4, 7], x[5], x[6], x[7] = 0.0, 1e6, 2.5, x[6].abs() + 1, -x[7].abs() - 1
    return x.to(dtype)


@compiled
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("grid", get_args(Grid))
def test_codes_are_those_of_torchs_passes(grid, dtype, monkeypatch):
    x = rows(dtype)
    for bits in (8, 4):
        spec = QuantSpec(bits=bits, grid=grid)
        assert kernels.reads(x)
        found = covered(x, spec)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            assert not kernels.reads(x)
            expected = covered(x, spec)
        assert (found[2] is None) == (expected[2] is None)
        for mine, its in zip(found, expected, strict=True):
            assert mine is its or torch.equal(mine, its)


@compiled
def test_values_between_two_codes_go_where_a_division_sends_them(monkeypatch):
    torch.manual_seed(0)
    steps = torch.rand(400, 1) * torch.logspace(-7, 7, 400).unsqueeze(1)
    halves = (torch.randint(-255, 255, (400, 999)) / 2 * steps).float()
    x = torch.cat([halves, torch.nextafter(halves, halves.new_tensor(torch.inf)), torch.randn(400, 999) * steps], 1)
    for bits in (8, 3):
        spec = QuantSpec(bits=bits)
        found = covered(x, spec)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            assert torch.equal(found[0], covered(x, spec)[0])


@compiled
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_codes_on_given_grids(dtype, monkeypatch):
    x = rows(dtype)
    for shape in ((1, 1), (len(x), 1)):
        numbers = torch.rand(shape) + 0.1, torch.randint(0, 256, shape).float(), 0, 255, "asymmetric"
        found = encoded(x, *numbers)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            expected = encoded(x, *numbers)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@compiled
def test_what_is_no_number_stays_none():
    x = rows(torch.float32)
    x[9, 49] = torch.nan
    for grid in get_args(Grid):
        _, scale, _ = covered(x, QuantSpec(bits=8, grid=grid))
        assert scale.isnan().nonzero()[:, 0].tolist() == [9]


@compiled
def test_operators_tell_the_shapes_that_come_out():
    x, spec = rows(torch.bfloat16)[:, :48], QuantSpec(bits=8)
    codes, scale, zero_point = kernels.covered(x, spec.grid, 0, 255, 128)
    numbers = scale, zero_point - 128
    weight = torch.zeros(1, 12, 32, 4, dtype=torch.int8), None, torch.ones(1, 32), None, torch.zeros(1, 32), None
    for name, inputs in (
        ("cover", (x, 3, 0, 255, 128)),
        ("encode", (x, scale, zero_point, 0, 255, 128)),
        ("product", (codes, *numbers, *weight, 20, torch.bfloat16)),
    ):
        torch.library.opcheck(
            getattr(torch.ops.qdit, name).default, inputs, test_utils=("test_schema", "test_faketensor")
        )
