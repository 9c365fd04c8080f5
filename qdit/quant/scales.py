"""How scales are kept: in 16 bits, as powers of two (E8M0, MX formats), or as E4M3 under one float32 a tensor (NVFP4).

    x̂ = level · scale            scale = stored · whole,  with whole = 1 where there is one level of scales alone

* E8M0 (OCP Microscaling v1.0, §6.3): the largest power of two that is no larger than the block's greatest magnitude,
  over the largest power of two of the format. Values between that and the next power of two are clipped.
* E4M3 (NVFP4): the block's greatest magnitude over the format's largest level, in units of a float32 that puts the
  tensor's greatest magnitude at the largest E4M3 number; at least the smallest normal one, as torchao and NVIDIA's
  kernels have it.
* four over six (arXiv 2512.02010): each block's greatest magnitude may lie at the level 4 instead of 6, if the squared
  error is less. The largest of the scales then is 256, so that 4 / 6 of it fits, too.

In 16 bits, scales are kept as float32 in the simulation, as those of integers are; the ledger counts 16.
"""

from dataclasses import dataclass
from math import floor, log2

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST = 2.0**-126
"""The least scale of one level: the smallest normal float32, so that rows of zeros divide by something."""
SMALLEST_WHOLE = 2.0**-100
E4M3_LARGEST, E4M3_SMALLEST = 448.0, 2.0**-6


@dataclass(frozen=True)
class Scales:
    """16 bits: as they are."""

    bits: int = 16
    whole_bits: int = 0
    """Of what all scales of a tensor have in common."""
    shares: tuple[float, ...] = (1.0,)
    """Where the greatest magnitude of a block may lie, as shares of the format's largest level."""

    def whole(self, magnitude: Float[Tensor, "*many"], largest: float) -> Float[Tensor, "*many"]:
        """The common part of a tensor's scales, given its greatest magnitude; 1 where there is one level of scales."""
        return torch.ones_like(magnitude)

    def kept(self, wanted: Float[Tensor, "rows 1"]) -> Float[Tensor, "rows 1"]:
        """Wanted scales, in units of the common part, as they can be kept; float32."""
        return wanted.clamp(min=SMALLEST)

    def of_magnitudes(self, magnitude: Float[Tensor, "rows 1"], largest: float) -> Float[Tensor, "rows 1"]:
        """The scales that are wanted for rows of a greatest magnitude in a format with a largest level."""
        return magnitude / largest

    def pack(self, kept: Tensor) -> Tensor:
        """Scales as a file holds them."""
        return kept

    def unpack(self, packed: Tensor) -> Tensor:
        """The inverse of `pack`."""
        return packed


@dataclass(frozen=True)
class E8M0(Scales):
    """Powers of two, eight bits of exponent."""

    bits: int = 8

    def kept(self, wanted: Float[Tensor, "rows 1"]) -> Float[Tensor, "rows 1"]:
        """See `Scales`: the nearest power of two by its logarithm; a power of two is kept as it is."""
        exponent = torch.log2(wanted.clamp(min=SMALLEST)).round().clamp(max=127).nan_to_num()
        power = ((exponent.int() + 127) << 23).view(torch.float32)
        return torch.where(wanted.isfinite(), power, torch.nan)

    def of_magnitudes(self, magnitude: Float[Tensor, "rows 1"], largest: float) -> Float[Tensor, "rows 1"]:
        """See `Scales`: the power of two of the magnitude over that of the largest level."""
        exponent = (magnitude.float().view(torch.int32) >> 23) - floor(log2(largest))  # with float32's bias
        power = (exponent.clamp(min=1) << 23).view(torch.float32)
        return torch.where(magnitude.isnan(), torch.nan, power)

    def pack(self, kept: Tensor) -> Tensor:
        """See `Scales`: the exponents, uint8; 255 is NaN."""
        return (kept.float().view(torch.int32) >> 23).to(torch.uint8)

    def unpack(self, packed: Tensor) -> Tensor:
        """See `Scales`."""
        return torch.where(packed == 255, torch.nan, (packed.int() << 23).view(torch.float32))


@dataclass(frozen=True)
class E4M3(Scales):
    """Two levels: E4M3 a block, times a float32 a tensor; `top` is the scale of the tensor's greatest magnitude."""

    bits: int = 8
    whole_bits: int = 32
    top: float = E4M3_LARGEST

    def whole(self, magnitude: Float[Tensor, "*many"], largest: float) -> Float[Tensor, "*many"]:
        """See `Scales`."""
        return (magnitude / (self.top * largest)).clamp(min=SMALLEST_WHOLE)

    def kept(self, wanted: Float[Tensor, "rows 1"]) -> Float[Tensor, "rows 1"]:
        """See `Scales`."""
        return wanted.clamp(E4M3_SMALLEST, E4M3_LARGEST).to(torch.float8_e4m3fn).float()

    def pack(self, kept: Tensor) -> Tensor:
        """See `Scales`: the bit patterns, uint8."""
        return kept.to(torch.float8_e4m3fn).view(torch.uint8)

    def unpack(self, packed: Tensor) -> Tensor:
        """See `Scales`."""
        return packed.view(torch.float8_e4m3fn).float()


SCALES: dict[str | None, Scales] = {
    None: Scales(),
    "e8m0": E8M0(),
    "e4m3": E4M3(),
    "e4m3_46": E4M3(top=256.0, shares=(1.0, 4 / 6)),
}
"""By what `QuantSpec.scale` says."""
