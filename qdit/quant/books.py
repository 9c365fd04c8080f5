"""Code-books of static quantizers: the function that rounds a value, given calibrated quantization parameters.

A code-book is called with values and its *numbers*, its quantization parameters: scale and zero point for a uniform
grid, other steps for others. They are tensors that broadcast against the values: one for the whole tensor, one per head
or one per sample (`qdit.nn.quantizers`). Here are the uniform grid, the logarithmic ones of RepQ-ViT and FQ-ViT, and
what makes rows sum to 1 again; the code-books with several regions are in `qdit.quant.regions`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.quant.affine import nearest
from qdit.quant.formats import format_of
from qdit.quant.spec import QuantSpec

Book = Callable[..., Tensor]
"""A code-book: (x, *numbers) -> x rounded, a new tensor of the same shape. A dataclass with plain fields."""
LogRounding = Literal["log", "linear"]
CACHED = 2**17
"""Probabilities that a processor rounds and divides at a time, so that they stay in its cache."""


@dataclass(frozen=True)
class Uniform:
    """The grid `scale (code - zero_point)` with codes from `low` to `high`: see `qdit.quant.affine`."""

    low: int
    high: int

    def __call__(self, x: Float[Tensor, "*shape"], scale: Tensor, zero_point: Tensor) -> Float[Tensor, "*shape"]:
        """See `Book`.

        >>> Uniform(0, 15)(torch.tensor([-0.3, 0.24, 9.0]), torch.tensor(0.1), torch.tensor(2.0))
        tensor([-0.2000,  0.2000,  1.3000])
        """
        return nearest(x, scale, zero_point, self.low, self.high)


@dataclass(frozen=True)
class Scaled:
    """The levels of a number format (`qdit.quant.formats`) times a scale."""

    bits: int
    format: str

    def __call__(self, x: Float[Tensor, "*shape"], scale: Tensor) -> Float[Tensor, "*shape"]:
        """See `Book`.

        >>> Scaled(4, "e2m1")(torch.tensor([-0.3, 0.24, 9.0]), torch.tensor(0.1))
        tensor([-0.3000,  0.2000,  0.6000])
        """
        spec = QuantSpec(bits=self.bits, granularity="tensor", grid=self.format, dynamic=False)  # type: ignore[arg-type]
        return format_of(spec, x.numel()).nearest(x / scale).mul_(scale)


@dataclass(frozen=True)
class LogSqrt2:
    """Powers of √2 below a scale (RepQ-ViT, arXiv 2212.08254, eq. 12-16), for values that are not negative.

    code = clamp(round(-2 log₂(x / s)), 0, 2^b - 1),   x̂ = s 2^(-⌈code / 2⌉) (√2 if the code is odd)

    Values below the smallest power become 0. That is one level more than b bits can hold, as in the released code; an
    integer kernel would have to give up the smallest power.
    """

    bits: int

    def encode(self, x: Float[Tensor, "*shape"], scale: Tensor) -> Float[Tensor, "*shape"]:
        """Codes as floats; 2^bits stands for 0."""
        return torch.round(-2 * torch.log2(x / scale)).clamp(0, 2**self.bits)

    def decode(self, codes: Float[Tensor, "*shape"], scale: Tensor) -> Float[Tensor, "*shape"]:
        """Dequantize: the values that the codes stand for."""
        values = torch.exp2(-torch.ceil(codes / 2)) * (1 + (sqrt(2) - 1) * (codes % 2)) * scale
        return torch.where(codes < 2**self.bits, values, 0.0)

    def __call__(self, x: Float[Tensor, "*shape"], scale: Tensor) -> Float[Tensor, "*shape"]:
        """See `Book`.

        >>> LogSqrt2(4)(torch.tensor([0.0, 0.24, 0.4, 1.0]), torch.tensor(1.0))
        tensor([0.0000, 0.2500, 0.3536, 1.0000])
        """
        return self.decode(self.encode(x, scale), scale)


@dataclass(frozen=True)
class Log2:
    """Powers of 2 from 1 down (FQ-ViT, arXiv 2111.13824, its log-int-softmax), for values from 0 to 1; it has no scale.

    With `linear`, as released, R = round(1 / x) takes the nearest power of two itself, with borders at 1.5 · 2^j:

        code = ⌊log₂ R⌋ + [R ≥ 1.5 · 2^⌊log₂ R⌋],   x̂ = 2^-code

    With `log` the exponent is rounded, with borders at √2 · 2^j: code = round(-log₂ x). Codes from 2^b on become 0,
    one level more than b bits can hold, as in the released code.
    """

    bits: int
    rounding: LogRounding

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See `Book`.

        >>> Log2(4, "linear")(torch.tensor([0.0, 0.24, 0.39, 0.7, 1.0]))
        tensor([0.0000, 0.2500, 0.2500, 1.0000, 1.0000])
        """
        if self.rounding == "log":
            codes = torch.round(-torch.log2(x))
        else:
            inverse = torch.round(1 / x)  # infinite at 0, and so is its code
            floor = torch.log2(inverse).floor()
            codes = floor + (inverse >= 1.5 * torch.exp2(floor))
        codes = codes.clamp(0, 2**self.bits)
        return torch.where(codes < 2**self.bits, torch.exp2(-codes), 0.0)


@dataclass(frozen=True)
class Renormalised:
    """A code-book of probabilities whose rows, the last dimension, are divided by their sums: p̂ / Σ p̂ over keys.

    It is in none of the papers. Rounding on a coarse grid changes the sum of a row, and so scales the output of the
    attention up or down; a fused kernel divides by the sum of what it rounded at no cost, where it would divide by that
    of the exponentials. A row that is rounded to zeros stays zeros.
    """

    book: Book

    def __call__(self, x: Float[Tensor, "*shape"], *numbers: Tensor) -> Float[Tensor, "*shape"]:
        """See `Book`.

        >>> Renormalised(Uniform(0, 3))(torch.tensor([0.7, 0.2, 0.1]), torch.tensor(1 / 3), torch.tensor(0.0))
        tensor([0.6667, 0.3333, 0.0000])
        """
        whole = x.requires_grad or x.device.type != "cpu" or any(each.numel() > 1 for each in numbers)
        if whole or x.numel() <= CACHED or not x.is_contiguous():
            return renormalised(self.book(x, *numbers))
        made, rows = torch.empty_like(x), max(1, CACHED // x.shape[-1])
        for some, own in zip(x.flatten(0, -2).split(rows), made.flatten(0, -2).split(rows), strict=True):
            rounded = self.book(some, *(each.reshape(()) for each in numbers))
            torch.div(rounded, divisors(rounded), out=own)
        return made


def renormalised(rounded: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Rows, the last dimension, divided by their sums; one of zeros stays."""
    return rounded / divisors(rounded)


def divisors(rounded: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows 1"]:
    """What rows are divided by: their sums, or 1."""
    total = rounded.sum(-1, keepdim=True)
    return torch.where(total > 0, total, 1.0)
