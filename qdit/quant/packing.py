"""Bit packing: codes of 2 to 8 bits as bytes without gaps, first code in the highest bits, last byte padded with zeros.

At 4 bits a byte holds two codes, the earlier one in its upper half. Codes of a grid that starts below 0 are shifted: -8
to 7 is stored as 0 to 15.
"""

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from torch import Tensor


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that hold `count` codes.

    >>> packed_bytes(5, 4)
    3
    """
    return (count * bits + 7) // 8


def pack(codes: Integer[Tensor, "*shape"], bits: int, low: int = 0) -> UInt8[Tensor, " bytes"]:
    """The codes, in order, as bytes on the CPU.

    >>> pack(torch.tensor([1, 2, 15]), bits=4)
    tensor([ 18, 240], dtype=torch.uint8)

    Args:
        codes: any integers from `low` to `low` + 2^bits - 1.
        bits: 2 to 8.
        low: the lowest code.

    Raises:
        ValueError: a code is out of range.
    """
    shifted = codes.cpu().flatten().int() - low
    if len(shifted) and not 0 <= int(shifted.min()) <= int(shifted.max()) < 2**bits:
        raise ValueError(
            f"codes from {int(shifted.min()) + low} to {int(shifted.max()) + low} do not fit {bits} bits from {low} on"
        )
    plain = shifted.to(torch.uint8)
    if bits == 8:
        return plain
    return torch.from_numpy(np.packbits(np.unpackbits(plain.numpy()[:, None], axis=1)[:, 8 - bits :]))


def unpack(
    packed: UInt8[Tensor, " bytes"], bits: int, shape: tuple[int, ...], low: int = 0
) -> Integer[Tensor, "*shape"]:
    """The inverse of `pack`: uint8 codes of the given shape, or int8 ones where `low` is negative.

    Raises:
        ValueError: there are more or fewer bytes than the shape needs.
    """
    count = int(np.prod(shape))
    if packed.dtype != torch.uint8 or packed.numel() != packed_bytes(count, bits):
        raise ValueError(f"{packed.numel()} bytes hold no {count} codes of {bits} bits")
    plain = packed
    if bits == 4:  # by far the most frequent, and without a byte for each bit
        plain = torch.stack([packed >> 4, packed & 15], 1).flatten()[:count]
    elif bits < 8:
        single = np.unpackbits(packed.numpy(), count=count * bits).reshape(count, bits)
        plain = torch.from_numpy(np.packbits(single, axis=1) >> (8 - bits))
    if low < 0:
        plain = (plain.short() + low).to(torch.int8)
    return plain.view(shape)
