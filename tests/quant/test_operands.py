"""Weights in the forms that kernels read: the bits of torch's own product, the codes back, and no byte beside them."""

import copy
import logging

import pytest
import torch
from torch import nn

from qdit.execution import executing, has_int8
from qdit.nn.linear import QuantLinear
from qdit.nn.quantizers import DynamicQuantizer
from qdit.quant import native
from qdit.quant.affine import affine
from qdit.quant.grid import Rounded
from qdit.quant.integers import Codes, product
from qdit.quant.operands import Operand, Packed, formed, smallest
from qdit.quant.spec import QuantSpec, as_rows
from qdit.quant.tiled import Tiled

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not has_int8(CPU), reason="no int8 instructions here")
compiled = pytest.mark.skipif(native.library() is None, reason="no compiler, or no instructions for the kernel")
FORMS = [Packed, pytest.param(Tiled, marks=compiled)]
# rows, outputs, channels, groups of the input and of the weight: tiles that are whole and not, for AMX and for VNNI
SHAPES = [(1, 5, 16, 1, 1), (13, 40, 64, 2, 4), (100, 33, 128, 2, 1), (97, 64, 256, 4, 4), (40, 96, 384, 1, 3)]


def codes(rows, channels, groups, offset) -> Codes:
    integers = torch.randint(-128, 128, (rows, channels), dtype=torch.int8)
    return Codes(
        integers, torch.rand(rows, groups), torch.randint(-300, 300, (rows, groups)).float() if offset else None
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_have_the_bits_of_torchs_own(form, shape):
    rows, out, channels, mine, its = shape
    torch.manual_seed(rows)
    for of_x, of_weight in ((False, False), (True, False), (False, True), (True, True)):
        x, weight = codes(rows, channels, mine, of_x), codes(out, channels, its, of_weight)
        made = form(weight, max(mine, its))
        for bias in (None, torch.randn(out)):
            assert torch.equal(made.product(x, bias), product(x, weight, bias))
        assert torch.equal(made.codes(), weight.integers)


@compiled
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_of_four_bits_stay_two_a_byte(shape):
    rows, out, channels, mine, its = shape
    parts = max(mine, its)
    x, weight = codes(rows, channels, mine, True), codes(out, channels, its, True)
    small = torch.randint(0, 16, (out, parts, channels // parts)) + torch.randint(-128, 113, (out, parts, 1))
    weight = Codes(small.flatten(1).to(torch.int8), weight.scale, weight.offset)
    made = Tiled(weight, parts)
    assert made.tiles.numel() * 2 == channels * (out + -out % 32)
    assert torch.equal(made.codes(), weight.integers)
    assert torch.equal(made.product(x, None), product(x, weight, None))


@compiled
def test_one_grid_for_all_rows_and_several_threads(monkeypatch):
    x, weight = codes(50, 128, 2, False), codes(70, 128, 2, True)
    shared = Codes(x.integers, x.scale[:1], torch.tensor([[3.0, -7.0]]))
    alone = Tiled(weight, 2).product(shared, None)
    assert torch.equal(alone, product(shared, weight, None))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(Tiled(weight, 2).product(shared, None), alone)


def test_without_a_compiler_groups_take_onednn(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="qdit")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert native.library.__wrapped__() is None
    if torch.cpu._is_avx512_supported():
        assert "no-such-compiler does not build" in caplog.text
    monkeypatch.setattr(native, "library", lambda: None)
    assert isinstance(formed(codes(8, 32, 4, False), 4), Packed)


@pytest.mark.parametrize("form", FORMS)
def test_outputs_in_bfloat16_are_rounded_sums(form):
    torch.manual_seed(0)
    for rows, out, channels, groups in ((13, 40, 64, 2), (97, 64, 256, 4), (5, 33, 128, 1)):
        x, weight = codes(rows, channels, groups, True), codes(out, channels, groups, False)
        made, bias = form(weight, groups), torch.randn(out).bfloat16()
        found = made.product(x, bias, torch.bfloat16)
        assert torch.equal(found, product(x, weight, bias).bfloat16())
        assert found.dtype == torch.bfloat16


def rounded(bits, grid, **how) -> Rounded:
    weight, spec = torch.randn(24, 64) + 0.05, QuantSpec(bits=bits, grid=grid, **how)
    rows = as_rows(weight, spec)
    return Rounded.of(weight, affine(rows.amin(-1, True), rows.amax(-1, True), spec), spec)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("grid", ["asymmetric", "asymmetric_free", "symmetric", "symmetric_full"])
@pytest.mark.parametrize("how", [{"granularity": "tensor"}, {}, {"granularity": "group", "group_size": 16}], ids=str)
def test_a_weight_comes_back(bits, grid, how):
    weight = rounded(bits, grid, **how)
    back = Operand(weight, groups=1).rounded()
    assert back.codes.dtype == weight.codes.dtype
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.weight, weight.weight)
    for name in ("scale", "zero_point"):
        given, found = getattr(weight.grid, name), getattr(back.grid, name)
        assert given.shape == found.shape
        assert torch.equal(given.view(torch.int32), found.contiguous().view(torch.int32))


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [([0, 255], torch.uint8), ([-8, 7], torch.int8), ([-300, 9], torch.int16), ([0, 1e6], torch.float32)],
)
def test_whole_numbers_are_held_in_the_smallest_type_that_has_their_bits(numbers, kind):
    given = torch.tensor(numbers).float().view(-1, 1)
    assert smallest(given).dtype == kind
    assert torch.equal(smallest(given).float(), given)
    assert smallest(torch.tensor([[-0.0]])).dtype == torch.float32


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("how", [{}, {"granularity": "group", "group_size": 128}], ids=["row", "group"])
def test_integers_are_held_once_and_their_layer_is_as_before(how, bits):
    linear, spec = nn.Linear(512, 256), QuantSpec(bits=bits, **how)
    most = 0.6 if bits == 4 and native.library() is not None else 1.2
    weight = linear.weight.detach()
    rows = as_rows(weight, spec)
    made = Rounded.of(weight, affine(rows.amin(-1, True), rows.amax(-1, True), spec), spec)
    layer, x = QuantLinear(linear, made, DynamicQuantizer(spec)).eval(), torch.randn(9, 512)
    count = weight.numel()
    assert layer.bytes < 1.1 * count  # nothing is in floating point before it is needed
    with torch.no_grad():
        simulated = layer(x)
        assert layer.bytes >= 5 * count
        with executing("int8", CPU):
            first = layer(x)
            assert layer.bytes < most * count
            again = copy.deepcopy(layer)(x)
        assert layer.bytes < most * count
        assert torch.equal(first, again)
        assert torch.equal(layer(x), simulated)
    assert torch.equal(layer.rounded.codes, made.codes)
