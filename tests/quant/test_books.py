"""Powers of 2, and rows that are divided by their sums: golden examples, borders, zeros, half precision."""

import pytest
import torch
from helpers.softmax import softmax_rows

from qdit.quant.books import CACHED, Log2, LogSqrt2, Renormalised, Uniform, renormalised
from qdit.quant.regions import TwoRegion

P = torch.tensor([1, 0.71, 0.70, 0.67, 0.66, 0.6, 0.4, 0.39, 0.34, 0.25, 0.2, 0.1, 1 / 3, 1e-3, 3e-5, 2e-5, 0])
TINY = [0.125, 0.25, 2**-10, 2**-15, 0, 0]
GOLDEN = {
    "linear": [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, *TINY],
    "log": [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, *TINY],
}


@pytest.mark.parametrize("rounding", ["linear", "log"])
def test_golden_powers_of_two(rounding):
    assert Log2(4, rounding)(P).tolist() == GOLDEN[rounding]


@pytest.mark.parametrize("rounding", ["linear", "log"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_powers_are_monotone_keep_themselves_and_have_one_level_more_than_codes(rounding, bits):
    book = Log2(bits, rounding)
    line = torch.cat([torch.linspace(0, 1, 20001), torch.logspace(-37, 0, 5000), torch.tensor([1e-44])]).sort().values
    made = book(line)
    assert made.diff().min() >= 0
    assert torch.equal(book(made), made)
    assert made.min() == 0
    assert made.max() == 1
    assert made.isfinite().all()
    if bits <= 4:
        assert len(made.unique()) == 2**bits + 1


def test_linear_borders_are_in_the_middle_and_those_of_exponents_at_roots():
    x = 2.0 ** -torch.arange(3, 12.0)
    linear, log = Log2(4, "linear"), Log2(4, "log")
    for factor, nearest, exponent in ((1.4, x, x), (1.46, x, x / 2), (1.57, x / 2, x / 2)):
        inverse = (factor / x).round()  # so that it is whole already
        assert torch.equal(linear(1 / inverse[2:]), nearest[2:])
        assert torch.equal(log(1 / inverse[2:]), exponent[2:])
    assert (linear(torch.tensor(0.64)), linear(torch.tensor(0.7))) == (0.5, 1)  # 1 / p is rounded first


def test_golden_a_row_is_divided_by_its_sum():
    p = torch.tensor([0.6, 0.2, 0.1, 0.05, 0.03, 0.02])
    plain, divided = Log2(4, "linear")(p), Renormalised(Log2(4, "linear"))(p)
    assert plain.tolist() == [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]
    expected = torch.tensor([0.507937, 0.253968, 0.126984, 0.063492, 0.031746, 0.015873])
    torch.testing.assert_close(divided, expected, atol=1e-6, rtol=0)
    assert (plain - p).square().mean().item() == pytest.approx(2.2170e-3, rel=1e-4)
    assert (divided - p).square().mean().item() == pytest.approx(2.0531e-3, rel=1e-4)


ONE = torch.tensor(1.0)
BOOKS = [
    (Log2(4, "linear"), ()),
    (LogSqrt2(6), (ONE,)),
    (Uniform(0, 15), (ONE / 15, ONE * 0)),
    (TwoRegion(4), tuple(map(torch.tensor, TwoRegion(4).numbers(2, "one_exact")))),
]


@pytest.mark.parametrize(("book", "numbers"), BOOKS, ids=lambda b: type(b).__name__)
def test_every_row_sums_to_one_or_is_zeros_and_keeps_its_zeros(book, numbers):
    rows = softmax_rows(3.0)
    plain, divided = book(rows, *numbers), Renormalised(book)(rows, *numbers)
    sums = divided.sum(-1)
    torch.testing.assert_close(sums, (plain.sum(-1) > 0).float(), atol=1e-5, rtol=0)
    assert torch.equal(divided == 0, plain == 0)
    assert torch.equal(Renormalised(book)(torch.zeros(2, 3), *numbers), torch.zeros(2, 3))


@pytest.mark.parametrize(("book", "numbers"), BOOKS, ids=lambda b: type(b).__name__)
def test_many_rows_are_divided_part_by_part_with_the_same_bits(book, numbers):
    rows = torch.randn(3, 5, 30, 301, generator=torch.Generator().manual_seed(2)).mul_(3).softmax(-1)
    assert rows.numel() > CACHED
    whole = renormalised(book(rows, *numbers))
    for shaped in (numbers, [each.view(1, 1, 1, 1) for each in numbers]):
        assert torch.equal(Renormalised(book)(rows, *shaped), whole)
    own = [each.expand(3).view(3, 1, 1, 1) for each in numbers]  # a number a sample, as of groups of timesteps
    assert torch.equal(Renormalised(book)(rows, *own), whole)
    assert torch.equal(Renormalised(book)(rows.mT, *numbers), renormalised(book(rows.mT, *numbers)))


def test_a_row_that_the_book_has_and_that_sums_to_one_stays():
    row = torch.tensor([[0.5, 0.25, 0.125, 0.125, 0.0]])
    assert torch.equal(Renormalised(Log2(4, "log"))(row), row)


def test_products_of_rows_are_nearer_to_full_precision():
    """What it is for: the error of P V on flat rows with codes of powers."""
    rows = softmax_rows(2.0)
    v = torch.randn(256, 32, generator=torch.Generator().manual_seed(1)) + 1
    for book, numbers in BOOKS[:2]:
        errors = [(made(rows, *numbers) @ v - rows @ v).square().sum() for made in (book, Renormalised(book))]
        assert errors[1] < 0.6 * errors[0]
