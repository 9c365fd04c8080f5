"""What goes wrong with files."""

import numpy as np


def flipped(data: bytes, seed: int, count: int = 16) -> bytes:
    """Bits of a file flipped, somewhere in a row or all over it."""
    rng, bits = np.random.default_rng(seed), len(data) * 8
    where = rng.integers(bits, size=count) if seed % 2 else rng.integers(bits - count) + np.arange(count)
    changed = bytearray(data)
    for bit in where:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
