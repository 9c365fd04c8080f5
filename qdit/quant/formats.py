"""Number formats with levels: floating-point numbers of a few bits, and code-books; integers are `qdit.quant.affine`.

A format is a set of *levels* for values in units of a scale. Floating-point formats `eXmY` have a sign, X bits of
exponent and Y of mantissa, with subnormal numbers and without infinities: E4M3 and E5M2 are OCP's FP8, E3M2 and E2M1
of the OCP Microscaling specification (v1.0), E3M0 and E1M2 those of FP4DiT (arXiv 2503.15465). Rounding is to the
nearest level, ties to the even mantissa (E3M0 has none: its ties go to the larger power of two); what lies beyond the
largest level becomes that. NF4 is QLoRA's code-book (arXiv 2305.14314). The Lloyd-Max code-book has the least squared
error for one coordinate of a random direction, as OrbitQuant (arXiv 2607.02461) has it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import nan
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from qdit.quant.spec import QuantSpec

MANTISSA, BIAS = 23, 127  # of float32
POINTS = 20_001  # of the law that a Lloyd-Max code-book is fitted to
GAUSSIAN = 4096  # values of a row from which their law is Gaussian to three digits of the levels


class Format(ABC):
    """A set of levels with codes of some bits."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """Where the end of a row's range comes to lie."""

    @abstractmethod
    def coded(self) -> Sequence[float]:
        """The level of each code; NaN where a code stands for none."""

    @abstractmethod
    def nearest(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The nearest level of each value, float32; `x`, a float32 tensor of one's own, is overwritten."""

    @abstractmethod
    def encode(self, levels: Float[Tensor, "*shape"]) -> Integer[Tensor, "*shape"]:
        """The codes of levels, uint8."""

    def decode(self, codes: Integer[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The levels of codes."""
        return self.values(codes.device).index_select(0, codes.flatten().int()).view(codes.shape)

    def magnitude(self, rows: Float[Tensor, "rows n"]) -> Float[Tensor, "rows 1"]:
        """What of each row's own values comes to lie at `largest`: the greatest magnitude."""
        return rows.abs().amax(-1, keepdim=True)

    def values(self, device: torch.device) -> Float[Tensor, " codes"]:
        """The level of each code, a table that all calls share."""
        return _tables(self, device).values

    def levels(self, device: torch.device) -> Float[Tensor, " levels"]:
        """The different levels, ascending, a table that all calls share."""
        return _tables(self, device).levels


class _Tables(NamedTuple):
    values: Tensor
    levels: Tensor
    between: Tensor
    """Halfway between neighbouring levels."""


@cache
def _tables(format: Format, device: torch.device) -> _Tables:
    """The tables of a format on a device, made once: plain tensors, whatever context asks for them first."""
    with torch.inference_mode(False):
        values = torch.tensor(format.coded(), dtype=torch.float32, device="cpu")
        levels = values[~values.isnan()].unique()
        return _Tables(*(table.to(device) for table in (values, levels, (levels[1:] + levels[:-1]) / 2)))


@dataclass(frozen=True)
class Floating(Format):
    """Floating-point numbers: sign, `exponent` bits with a `bias`, `mantissa` bits; codes are their bit patterns."""

    exponent: int
    mantissa: int
    bias: int
    end: float
    """The largest number; bit patterns beyond it are none."""

    @property
    def bits(self) -> int:
        """Of a code."""
        return 1 + self.exponent + self.mantissa

    @property
    def largest(self) -> float:
        """See `Format`."""
        return self.end

    @property
    def least(self) -> int:
        """The exponent of the smallest normal number."""
        return 1 - self.bias

    def nearest(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See `Format`. Adding a large number c and taking it away again rounds to a multiple of c's last place."""
        x.clamp_(-self.end, self.end)
        c = x.view(torch.int32) & 0x7F800000  # the power of two below |x|
        c.clamp_(min=(self.least + BIAS) << MANTISSA)
        c.add_(((MANTISSA - self.mantissa) << MANTISSA) + (1 << (MANTISSA - 1)))
        c = c.view(torch.float32)
        return x.add_(c).sub_(c)

    def encode(self, levels: Float[Tensor, "*shape"]) -> Integer[Tensor, "*shape"]:
        """See `Format`."""
        size = levels.abs()
        normal = (size.view(torch.int32) >> (MANTISSA - self.mantissa)) - ((BIAS + self.least - 1) << self.mantissa)
        subnormal = (size * 2.0 ** (self.mantissa - self.least)).int()
        codes = torch.where(size < 2.0**self.least, subnormal, normal)
        return codes.add_(levels.signbit(), alpha=1 << (self.bits - 1)).to(torch.uint8)

    def coded(self) -> Sequence[float]:
        """See `Format`: the number that each bit pattern stands for."""
        half = range(2 ** (self.bits - 1))
        found = [self._number(code >> self.mantissa, code & ((1 << self.mantissa) - 1)) for code in half]
        return [*found, *(-number for number in found)]

    def _number(self, exponent: int, fraction: int) -> float:
        whole = fraction / 2**self.mantissa + (exponent > 0)
        number = whole * 2.0 ** (max(exponent, 1) - self.bias)
        return number if number <= self.end else nan


@dataclass(frozen=True)
class CodeBook(Format):
    """Any levels, ascending; a code is a level's number. A value halfway between two has the lower one."""

    table: tuple[float, ...]
    by_norm: bool = False
    """Whether the scale is the row's root mean square; else its greatest magnitude lies at the end of the table."""

    @property
    def largest(self) -> float:
        """See `Format`."""
        return self.table[-1]

    def coded(self) -> Sequence[float]:
        """See `Format`."""
        return self.table

    def nearest(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See `Format`."""
        found = self.decode(torch.bucketize(x, _tables(self, x.device).between, out_int32=True))
        return torch.where(x.isnan(), x, found)

    def encode(self, levels: Float[Tensor, "*shape"]) -> Integer[Tensor, "*shape"]:
        """See `Format`."""
        return torch.bucketize(levels, _tables(self, levels.device).between, out_int32=True).to(torch.uint8)

    def magnitude(self, rows: Float[Tensor, "rows n"]) -> Float[Tensor, "rows 1"]:
        """See `Format`."""
        if not self.by_norm:
            return super().magnitude(rows)
        return rows.square().mean(-1, keepdim=True).sqrt() * self.largest


FLOATS = {
    "e2m1": Floating(2, 1, 1, 6.0),
    "e3m0": Floating(3, 0, 3, 16.0),
    "e1m2": Floating(1, 2, 0, 3.5),
    "e3m2": Floating(3, 2, 3, 28.0),
    "e4m3": Floating(4, 3, 7, 448.0),
    "e5m2": Floating(5, 2, 15, 57344.0),
}
NF4 = CodeBook(
    (  # quantiles of the normal distribution, as released
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    )
)


def format_of(spec: QuantSpec, length: int) -> Format:
    """The format of a spec with levels, for rows of some length.

    A row that is a whole tensor, or all of a head, is no direction of a known length: its values are as many as were
    calibrated, or are in a batch. So its code-book is that of a Gaussian.
    """
    if spec.grid == "lloyd_max":
        return lloyd_max(spec.bits, GAUSSIAN if spec.granularity in ("tensor", "head") else min(length, GAUSSIAN))
    return NF4 if spec.grid == "nf4" else FLOATS[spec.grid]


@cache
def lloyd_max(bits: int, length: int) -> CodeBook:
    """The code-book of least squared error for one of so many coordinates of a random direction, of mean square 1.

    The density of a coordinate z of the unit sphere is proportional to (1 - z²)^((n - 3) / 2); from `GAUSSIAN` on it is
    taken for the normal one. Lloyd's algorithm alternates between the means of cells and the midpoints between them.

    >>> [round(level, 4) for level in lloyd_max(2, GAUSSIAN).table]
    [-1.5104, -0.4528, 0.4528, 1.5104]
    """
    normal = length >= GAUSSIAN
    end = 8.0 if normal else min(8.0, length**0.5)
    z = np.linspace(-end, end, POINTS)
    density = np.exp(-z * z / 2) if normal else np.clip(1 - z * z / length, 0, None) ** max((length - 3) / 2, 0)
    cumulated = [np.concatenate([[0.0], np.cumsum((f[1:] + f[:-1]) / 2)]) for f in (density, density * z)]
    # Panter and Dite: many levels lie as the cube root of the density.
    sparse = np.cumsum(density ** (1 / 3))
    levels = np.interp((np.arange(2**bits) + 0.5) / 2**bits, sparse / sparse[-1], z)
    for _ in range(100_000):
        ends = np.concatenate([[-end], (levels[1:] + levels[:-1]) / 2, [end]])
        mass, moment = (np.diff(np.interp(ends, z, f)) for f in cumulated)
        before, levels = levels, moment / mass
        levels = (levels - levels[::-1]) / 2  # the law is symmetric
        if np.abs(levels - before).max() < 1e-8:
            break
    return CodeBook(tuple(float(np.float32(level)) for level in levels), by_norm=True)
