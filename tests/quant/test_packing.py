"""Packed codes against a naive bit string, and what cannot be packed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdit.quant.packing import pack, packed_bytes, unpack


def naive(codes: list[int], bits: int) -> list[int]:
    """The codes' binary digits in a row, eight a byte."""
    digits = "".join(f"{code:0{bits}b}" for code in codes)
    digits += "0" * (-len(digits) % 8)
    return [int(digits[i : i + 8], 2) for i in range(0, len(digits), 8)]


@given(st.data(), st.integers(2, 8), st.integers(0, 40))
@settings(deadline=None, max_examples=100)
def test_packs_like_a_string_of_digits_and_back(data, bits, count):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert packed.tolist() == naive(codes, bits)
    assert len(packed) == packed_bytes(count, bits)
    assert unpack(packed, bits, (count,)).tolist() == codes


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_code_of_a_signed_grid_comes_back(bits):
    low = -(2 ** (bits - 1))
    codes = torch.arange(low, -low).view(2, -1).to(torch.int8)
    found = unpack(pack(codes, bits, low), bits, tuple(codes.shape), low)
    assert torch.equal(found, codes)
    assert found.dtype == torch.int8


def test_four_bits_are_half_a_byte():
    codes = torch.randint(0, 16, (24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack(codes, 4)
    assert packed.nbytes == codes.numel() // 2
    pairs = codes.flatten().int().view(-1, 2)
    assert torch.equal(packed.int(), pairs[:, 0] * 16 + pairs[:, 1])
    assert unpack(packed, 4, (24, 32)).dtype == torch.uint8


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="codes from 0 to 16 do not fit 4 bits"):
        pack(torch.tensor([0, 16]), 4)
    with pytest.raises(ValueError, match="codes from -9 to 0 do not fit 4 bits from -8 on"):
        pack(torch.tensor([0, -9]), 4, -8)
    for wrong in (torch.zeros(2, dtype=torch.uint8), torch.zeros(3)):
        with pytest.raises(ValueError, match="hold no 5 codes of 4 bits"):
            unpack(wrong, 4, (5,))
