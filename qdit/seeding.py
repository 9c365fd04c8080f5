"""Random numbers by sample index: image i is the same for every method, batch size, device and number of workers.

Each (seed, stream, index) has its own CPU generator, seeded with 63 bits of blake2b. Streams in use: `latent` (the
initial noise), `step` (the ancestral noise of one sample, drawn step after step) and `label`.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor

EVALUATION, CALIBRATION, DIAGNOSIS, SEARCH, CORRECTION = (10_000_000 * n for n in range(5))
"""First sample index of each use: none shares noise with another, as long as it has at most 10,000,000 samples."""


def key(seed: int, stream: str, index: int) -> int:
    """Hash the three to 63 bits."""
    return int.from_bytes(blake2b(f"{seed}|{stream}|{index}".encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, stream: str, index: int) -> torch.Generator:
    """Make the CPU generator that belongs to one sample and one purpose."""
    return torch.Generator().manual_seed(key(seed, stream, index))


def noise(seed: int, stream: str, index: int, shape: Sequence[int]) -> Float[Tensor, "..."]:
    """Draw standard normal float32 noise of `shape` on the CPU for one sample."""
    return torch.randn(tuple(shape), generator=generator(seed, stream, index))


def uniform(seed: int, stream: str, index: int) -> float:
    """Hash to a uniform number in [0, 1), with 53 random bits."""
    return (key(seed, stream, index) >> 10) / 2**53
