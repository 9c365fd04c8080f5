"""Code-books of several regions and of powers of √2: bounds, monotony, codes, and what the release computes."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.softmax import softmax_rows

from qdit.errors import UserError
from qdit.quant.books import LogSqrt2
from qdit.quant.regions import GELU_MINIMUM, ReleasedSum, TwoRegion, TwoSided

BITS = [4, 6, 8]
LINE = torch.linspace(0, 1, 20001)


def two_region(x, bits, shift, top):
    book = TwoRegion(bits)
    return book(x, *map(torch.tensor, book.numbers(shift, top)))


@pytest.mark.parametrize("bits", BITS)
def test_golden_1_equal_steps_are_the_uniform_grid(bits):
    half = 2 ** (bits - 1)
    expected = torch.round(LINE * half).clamp(0, half - 1) / half
    assert torch.equal(two_region(LINE, bits, 0, "saturated"), expected)
    x, step = torch.linspace(-3, 3, 4001), torch.tensor(0.3)
    assert torch.equal(TwoSided(bits)(x, step, step), torch.round(x / step).clamp(-half, half - 1) * step)
    book = TwoRegion(bits)
    step = 0.7 / (2**bits - 1)
    found = book(LINE, *map(torch.tensor, book.uniform(0.7)))
    torch.testing.assert_close(found, torch.round(LINE / step).clamp(0, 2**bits - 1) * step)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("top", ["one_exact", "saturated"])
def test_golden_2_errors_codes_levels_and_monotony(bits, top):
    book, half = TwoRegion(bits), 2 ** (bits - 1)
    for shift in range(bits):
        numbers = [torch.tensor(n) for n in book.numbers(shift, top)]
        found, (fine, coarse, _) = book(LINE, *numbers), numbers
        border = half * fine
        error = (found - LINE).abs()
        assert error[border > LINE].max() <= (fine / 2 if shift else coarse) + 1e-7
        upper = (border <= LINE) & (1 - coarse / 2 >= LINE)
        assert not upper.any() or error[upper].max() <= coarse / 2 + 1e-7
        codes = book.encode(LINE, *numbers)
        assert codes.min() >= 0
        assert codes.max() < 2**bits
        assert torch.equal(codes, codes.round())
        assert torch.equal(book.decode(codes, *numbers), found)
        assert len(found.unique()) <= 2**bits
        assert (found.diff() >= 0).all()
        assert found[-1] == (1 if top == "one_exact" else 1 - 1 / half)


@pytest.mark.parametrize("bits", BITS)
def test_golden_2_ratios_beyond_the_last_bit_are_refused_because_they_fall(bits):
    with pytest.raises(UserError, match=rf"exponents from 0 to {bits - 1}"):
        TwoRegion(bits).numbers(bits, "saturated")
    half = 2 ** (bits - 1)
    wrong = [torch.tensor(n) for n in (2.0 ** -(bits + 1) / half, 1 / half, half - 1)]
    assert (TwoRegion(bits)(torch.linspace(0, 1.5 / half, 501), *wrong).diff() < 0).any()


@pytest.mark.parametrize("bits", BITS)
def test_uniform_codes_of_two_regions_come_back(bits):
    book = TwoRegion(bits)
    numbers = [torch.tensor(n) for n in book.uniform(0.9)]
    codes = book.encode(LINE, *numbers)
    assert codes.max() == 2**bits - 1
    assert torch.equal(book.decode(codes, *numbers), book(LINE, *numbers))


def test_golden_2_two_sides():
    x = F.gelu(torch.linspace(-6, 6, 5001))
    for bits in BITS:
        half = 2 ** (bits - 1)
        steps = torch.tensor(GELU_MINIMUM / half), torch.tensor(6 / (half - 0.5))
        codes = TwoSided(bits).encode(x, *steps)
        assert (codes.min() >= -half) & (codes.max() == half - 1)
        found = TwoSided(bits)(x, *steps)
        assert torch.equal(TwoSided(bits).decode(codes, *steps), found)
        assert len(found.unique()) <= 2**bits
        assert (found - x).abs()[x < 0].max() <= steps[0] / 2 + 1e-7
        assert (found - x).abs()[x >= 0].max() <= steps[1] / 2 + 1e-5


def test_golden_3_no_offset_but_in_the_released_sum():
    probs, bits = softmax_rows(1.0), 8
    split = 2.0**-5
    masked = two_region(probs, bits, 5, "one_exact")
    summed = ReleasedSum(bits)(probs, torch.tensor(split))
    assert (masked - probs).mean().abs() < 1e-5
    assert (masked.sum(-1) - 1).abs().max() < 0.02
    assert (summed - probs).mean().item() == pytest.approx(split, rel=0.05)
    tiny = torch.tensor([1e-3])  # where the split rounds to 0 the coarse part adds nothing
    assert ReleasedSum(bits)(tiny, torch.tensor(2.0**-9)).item() == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("bits", [6, 8])
def test_golden_4_the_best_ratio_beats_the_uniform_grid_on_flat_rows(bits):
    """And of peaked rows the uniform grid can be the better one, which is why it is a candidate."""

    def errors(probs):
        book = TwoRegion(bits)
        split = [(two_region(probs, bits, m, "one_exact") - probs).square().mean().item() for m in range(bits)]
        even = (book(probs, *map(torch.tensor, book.uniform(1.0))) - probs).square().mean().item()
        return min(split), even

    best, uniform = errors(softmax_rows(1.0))
    assert best <= uniform
    best, uniform = errors(torch.rand(64, 4, generator=torch.Generator().manual_seed(0)))
    assert uniform < best


def test_golden_9_the_minimum_of_gelu():
    x = torch.linspace(-1, -0.5, 200001, dtype=torch.float64)
    assert -F.gelu(x).min().item() == pytest.approx(GELU_MINIMUM, abs=1e-7)
    assert F.gelu(x, approximate="tanh").min().item() == pytest.approx(-0.170041, abs=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_powers_of_root_2(bits):
    book, scale = LogSqrt2(bits), torch.tensor(0.8)
    x = torch.cat([torch.zeros(1), torch.logspace(-6, 0, 4001)])
    found, codes = book(x, scale), book.encode(x, scale)
    assert found[0] == 0
    for value, code in zip(found[1::97], codes[1::97], strict=True):
        expected = 0.0 if code >= 2**bits else 0.8 * 2 ** (-math.ceil(code / 2)) * (math.sqrt(2) if code % 2 else 1)
        assert value.item() == pytest.approx(expected, rel=1e-6)
    kept = (codes < 2**bits) & (x <= scale)
    assert (found[kept] / x[kept]).log2().abs().max() <= 0.25 + 1e-4
    assert (found.diff() >= 0).all()
    assert found[-1].item() == pytest.approx(0.8)
