"""The affine grids against specs/q-dit.md §6.1–5 and naive loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdit.errors import UserError
from qdit.quant.affine import affine, code_range
from qdit.quant.grid import Rounded, fake_quantize
from qdit.quant.ranges import MSE, MinMax, Percentile
from qdit.quant.spec import QuantSpec, as_rows

X = torch.tensor([-0.3, -0.1, 0.0, 0.25, 1.0])
GRIDS = ("asymmetric", "asymmetric_free", "asymmetric_clamped", "symmetric", "symmetric_full")


def grid_of(x, spec):
    rows = as_rows(x, spec)
    return rows, affine(*MinMax()(rows, spec), spec)


def test_golden_1_asymmetric_codes():
    rows, grid = grid_of(X, QuantSpec(bits=4))
    assert grid.scale.item() == pytest.approx(0.0866667, abs=1e-6)
    assert grid.zero_point.item() == 3
    assert grid.encode(rows).tolist() == [[0, 2, 3, 6, 15]]
    torch.testing.assert_close(grid.decode(grid.encode(rows))[0], torch.tensor([-0.26, -0.0866667, 0, 0.26, 1.04]))
    _, grid8 = grid_of(X, QuantSpec(bits=8))
    assert grid8.scale.item() == pytest.approx(0.00509804, abs=1e-7)
    assert grid8.zero_point.item() == 59


def test_golden_2_symmetric_grids():
    x = torch.linspace(-1, 1, 9)
    expected = torch.tensor([-1, -0.7143, -0.4286, -0.2857, 0, 0.2857, 0.4286, 0.7143, 1])
    torch.testing.assert_close(fake_quantize(x, QuantSpec(bits=4, grid="symmetric")), expected, atol=1e-4, rtol=0)
    assert fake_quantize(x, QuantSpec(bits=4, grid="symmetric_full")).max().item() == pytest.approx(0.9333, abs=1e-4)


def test_golden_3_single_signed_groups():
    x = torch.linspace(10, 11, 16)
    clamped = fake_quantize(x, QuantSpec(bits=8, grid="asymmetric_clamped"))
    assert torch.allclose(clamped, torch.ones_like(x))  # the released code's collapse
    free = QuantSpec(bits=8, grid="asymmetric_free")
    assert (fake_quantize(x, free) - x).abs().max() <= 1 / 255 / 2 + 1e-6


def test_golden_4_groups_are_rows_of_the_reshaped_tensor():
    x = torch.randn(5, 96)
    whole = QuantSpec(bits=4, granularity="group", group_size=96)
    assert torch.equal(fake_quantize(x, whole), fake_quantize(x, QuantSpec(bits=4)))
    grouped = fake_quantize(x, QuantSpec(bits=4, granularity="group", group_size=32))
    loop = torch.cat([fake_quantize(part, QuantSpec(bits=4)) for part in x.split(32, dim=-1)], dim=-1)
    assert torch.equal(grouped, loop)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8), grid=st.sampled_from(GRIDS), shift=st.floats(-2, 2))
def test_golden_5_properties(seed, bits, grid, shift):
    if grid == "asymmetric_clamped":
        shift = 0.0  # its error is unbounded on single-signed rows: that is golden test 3
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed)) + shift
    spec = QuantSpec(bits=bits, grid=grid)
    rows, params = grid_of(x, spec)
    out = fake_quantize(x, spec)
    # A value inside the grid's reach moves by half a step at most; outside it goes to the nearest end.
    ends = params.decode(torch.tensor([params.low, params.high]).float())
    nearest = torch.minimum(torch.maximum(rows, ends[:, :1]), ends[:, 1:])
    assert ((out - nearest).abs() <= params.scale / 2 * (1 + 1e-4) + 1e-6).all()
    assert torch.allclose(fake_quantize(out, spec, params), out, atol=1e-6)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(fake_quantize(x[order], spec), out[order])
    assert torch.allclose(fake_quantize(4 * x, spec), 4 * out, atol=1e-5)
    assert torch.allclose(params.decode(params.encode(rows)), out, atol=1e-5)


def test_naive_loop_agrees():
    x = torch.randn(3, 8)
    for r, row in enumerate(x.tolist()):
        lo, hi = min(*row, 0), max(*row, 0)
        scale = (hi - lo) / 15
        zero = round(-lo / scale)
        naive = [scale * (min(max(round(v / scale) + zero, 0), 15) - zero) for v in row]
        torch.testing.assert_close(fake_quantize(x, QuantSpec(bits=4))[r], torch.tensor(naive), atol=1e-5, rtol=1e-5)


def test_zero_is_a_value_of_every_default_grid_and_16_bits_is_the_identity():
    x = torch.rand(4, 16) + 3
    x[:, 0] = 0
    assert (fake_quantize(x, QuantSpec(bits=3))[:, 0] == 0).all()
    assert fake_quantize(x, QuantSpec(bits=16)) is x
    assert torch.equal(fake_quantize(torch.zeros(2, 4), QuantSpec(bits=4)), torch.zeros(2, 4))


def test_error_falls_along_nested_groups():
    x = torch.randn(64, 256) * torch.rand(256).mul(4).exp()
    errors = [
        (fake_quantize(x, QuantSpec(bits=4, granularity="group", group_size=g)) - x).square().mean().item()
        for g in (256, 128, 64, 32)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("symmetric", ["symmetric", "asymmetric"])
def test_mse_range_equals_the_loop_over_candidates_and_beats_minmax(symmetric):
    x = torch.randn(6, 64) ** 3
    spec = QuantSpec(bits=4, grid=symmetric)
    search = MSE(candidates=20, shrink=0.8, power=2.4)
    lo, hi = search(x, spec)
    for r in range(len(x)):
        rows = x[r : r + 1]
        errors = []
        for i in range(20):
            factor = 1 - 0.8 * i / 20
            out = fake_quantize(rows, spec, affine(rows.amin(-1, True) * factor, rows.amax(-1, True) * factor, spec))
            errors.append((out - rows).abs().pow(2.4).mean().item())
        best = 1 - 0.8 * errors.index(min(errors)) / 20
        assert lo[r].item() == pytest.approx(rows.min().item() * best, rel=1e-5)
    found = (fake_quantize(x, spec, affine(lo, hi, spec)) - x).abs().pow(2.4).mean()
    assert found < (fake_quantize(x, spec) - x).abs().pow(2.4).mean()


def test_percentile_is_numpys():
    x = torch.randn(3, 1001)
    lo, hi = Percentile(p=0.99)(x, QuantSpec(bits=8))
    torch.testing.assert_close(hi[:, 0], torch.quantile(x, 0.99, dim=1))
    torch.testing.assert_close(lo[:, 0], torch.quantile(x, 0.01, dim=1))


def test_bad_specs_are_refused_with_what_is_allowed():
    with pytest.raises(UserError, match="2 to 8"):
        QuantSpec(bits=1)
    with pytest.raises(UserError, match="group size is given"):
        QuantSpec(bits=4, granularity="group")
    with pytest.raises(UserError, match="does not divide 96 channels; 16, 24, 32, 48 and 96 do"):
        as_rows(torch.zeros(1, 96), QuantSpec(bits=4, granularity="group", group_size=64))
    with pytest.raises(UserError, match="above 0.5"):
        Percentile(p=0.1)


@pytest.mark.parametrize("size", [0, -16, 2.5, "many"])
def test_a_group_has_at_least_one_channel(size):
    with pytest.raises(UserError, match=f"group_size={size!r} is not possible; a whole number from 1 is"):
        QuantSpec(bits=4, granularity="group", group_size=size)


@pytest.mark.parametrize("bits", [4.5, "4", 9, 1])
def test_bits_are_whole_numbers(bits):
    with pytest.raises(UserError, match="2 to 8 are"):
        QuantSpec(bits=bits)


@given(
    st.integers(0, 999), st.sampled_from(GRIDS), st.integers(2, 8), st.sampled_from(["tensor", "row", "group"]),
    st.floats(-3, 3),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_codes_give_the_rounded_weight_back_bit_for_bit(seed, kind, bits, granularity, offset):
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(seed)) + offset
    spec = QuantSpec(bits=bits, granularity=granularity, group_size=8 if granularity == "group" else None, grid=kind)
    rows, grid = grid_of(weight, spec)
    expected = grid.round(rows).view_as(weight)
    for given_weight in (weight, expected):  # from full precision, and from the grid itself
        rounded = Rounded.of(given_weight, grid, spec)
        assert torch.equal(rounded.weight, expected)
        assert rounded.codes.dtype == (torch.int8 if kind == "symmetric" else torch.uint8)
        low, high = code_range(spec)
        assert low <= rounded.codes.min() <= rounded.codes.max() <= high
