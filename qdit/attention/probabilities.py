"""Code-books of attention probabilities (softmax outputs): uniform, two regions, their released sum, powers of 2 or √2.

Probabilities lie between 0 and 1, most of them near 0. All heads of an attention share the calibrated quantization
parameters (in TQ-DiT's release, one split for each group of timesteps). Rounded rows do not sum to 1; with
`renormalise` they do (`qdit.quant.books.Renormalised`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import MinLen
from torch import Tensor

from qdit.checked import NEWER, Checked, Count, Newer, UpperShare
from qdit.quant.affine import SMALLEST_SCALE, affine
from qdit.quant.books import Book, Log2, LogRounding, LogSqrt2, Renormalised, Scaled, Uniform
from qdit.quant.grid import covering
from qdit.quant.named import at_bits
from qdit.quant.ranges import Range, outer_quantiles
from qdit.quant.regions import ReleasedSum, Top, TwoRegion
from qdit.quant.spec import BookGrid, GridName, QuantSpec

Candidate = Literal["two_region", "uniform"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Probabilities(Newer, ABC):
    """How probabilities are rounded.

    Args:
        bits: of the probabilities; None for those of inputs.
        renormalise: whether each query's rounded probabilities are divided by their sum.
    """

    grid: ClassVar[GridName | BookGrid]
    """In the policy."""
    bits: int | None = None
    renormalise: bool = field(default=False, metadata=NEWER)

    def rounds(self, bits: int) -> Book:
        """What rounds rows of probabilities: the code-book, and the division by the sum if there is one."""
        return Renormalised(self.book(bits)) if self.renormalise else self.book(bits)

    @abstractmethod
    def book(self, bits: int) -> Book:
        """The code-book."""

    @abstractmethod
    def candidates(self, values: Tensor, spec: QuantSpec) -> list[tuple[float, ...]]:
        """The candidate numbers (quantization parameters) of the code-book, given values [n]."""

    def numbers(self, values: Tensor, spec: QuantSpec) -> Tensor:
        """The numbers with the least mean squared error of the values [n], float32; the first of equal ones."""
        tried = torch.tensor(self.candidates(values, spec), dtype=torch.float32)
        if len(tried) == 1:
            return tried[0]
        book = self.book(spec.bits)
        errors = [(book(values, *numbers).sub_(values)).double().square().mean() for numbers in tried]
        return tried[int(torch.stack(errors).argmin())]


@dataclass(frozen=True, kw_only=True, repr=False)
class UnsignedProbabilities(Probabilities):
    """A uniform grid from 0.

    Args:
        range: finds its end.
    """

    grid = "unsigned"
    range: Range

    def book(self, bits: int) -> Book:
        """See `Probabilities`."""
        return Uniform(0, 2**bits - 1)

    def candidates(self, values: Tensor, spec: QuantSpec) -> list[tuple[float, ...]]:
        """See `Probabilities`: the one of the rule."""
        grid = affine(*self.range(values.reshape(1, -1), spec), spec)
        return [(grid.scale.item(), grid.zero_point.item())]


@dataclass(frozen=True, kw_only=True, repr=False)
class FloatProbabilities(Probabilities):
    """The usual floating-point format of the bits (`qdit.quant.named.FLOAT`), whose largest level is the range's end.

    Args:
        range: finds that end.
    """

    grid = "float"
    range: Range

    def book(self, bits: int) -> Book:
        """See `Probabilities`."""
        return Scaled(bits, at_bits("float", bits))

    def candidates(self, values: Tensor, spec: QuantSpec) -> list[tuple[float, ...]]:
        """See `Probabilities`: the one of the rule."""
        rows = values.reshape(1, -1)
        return [(covering(rows, *self.range(rows, spec), spec).scale.item(),)]


@dataclass(frozen=True, kw_only=True, repr=False)
class TwoRegionProbabilities(Checked, Probabilities):
    """A fine grid near 0 and a coarse one up to 1 (TQ-DiT, PTQ4ViT: MRQ), of all ratios the one of least error.

    Where the largest probabilities are near 1, or all are small, the uniform grid of as many bits can be better: it may
    be a candidate, too.

    Args:
        top: whether 1 has a code (`one_exact`) or becomes 1 - 1/H (`saturated`, the paper).
        kinds: of candidates: `two_region`, `uniform`.

    Raises:
        UserError: an unknown kind, or none.
    """

    grid = "two_region"
    top: Top = "one_exact"
    kinds: Annotated[list[Candidate], MinLen(1)] = field(default_factory=lambda: ["two_region", "uniform"])

    def book(self, bits: int) -> TwoRegion:
        """See `Probabilities`."""
        return TwoRegion(bits)

    def candidates(self, values: Tensor, spec: QuantSpec) -> list[tuple[float, ...]]:
        """See `Probabilities`: the exponents for which the map is monotone, and the uniform grid of the maximum."""
        book = self.book(spec.bits)
        tried: Sequence[tuple[float, ...]] = [book.numbers(shift, self.top) for shift in range(spec.bits)]
        return [
            *(tried if "two_region" in self.kinds else []),
            *([book.uniform(values.max().item())] if "uniform" in self.kinds else []),
        ]


@dataclass(frozen=True, kw_only=True, repr=False)
class ReleasedSumProbabilities(Checked, Probabilities):
    """Both regions added up, as TQ-DiT's and PTQ4ViT's code does; for reproduction only (`ReleasedSum`).

    Args:
        splits: 2^-i with i below this are tried.

    Raises:
        UserError: there are none.
    """

    grid = "released_sum"
    splits: Count = 20

    def book(self, bits: int) -> Book:
        """See `Probabilities`."""
        return ReleasedSum(bits)

    def candidates(self, values: Tensor, spec: QuantSpec) -> list[tuple[float, ...]]:
        """See `Probabilities`."""
        return [(2.0**-i,) for i in range(self.splits)]


@dataclass(frozen=True, kw_only=True, repr=False)
class LogSqrt2Probabilities(Checked, Probabilities):
    """Powers of √2 below a scale: of a few quantiles the one of least error (RepQ-ViT, arXiv 2212.08254).

    Args:
        shares: the quantiles.

    Raises:
        UserError: no shares, or one out of range.
    """

    grid = "log_sqrt2"
    shares: Annotated[list[UpperShare], MinLen(1)] = field(default_factory=lambda: [0.999, 0.9999, 0.99999])

    def book(self, bits: int) -> Book:
        """See `Probabilities`."""
        return LogSqrt2(bits)

    def candidates(self, values: Tensor, spec: QuantSpec) -> list[tuple[float, ...]]:
        """See `Probabilities`."""
        quantiles = outer_quantiles(values.reshape(1, -1), self.shares)
        return [(max(upper.item(), SMALLEST_SCALE),) for _, upper in quantiles]


@dataclass(frozen=True, kw_only=True, repr=False)
class Log2Probabilities(Checked, Probabilities):
    """Powers of 2 from 1 down, without a scale (FQ-ViT, arXiv 2111.13824).

    Args:
        rounding: of 1/p to a power of two (`linear`, as released), or of its exponent (`log`).

    Raises:
        UserError: an unknown rounding.
    """

    grid = "log2"
    rounding: LogRounding = "linear"

    def book(self, bits: int) -> Book:
        """See `Probabilities`."""
        return Log2(bits, self.rounding)

    def candidates(self, values: Tensor, spec: QuantSpec) -> list[tuple[float, ...]]:
        """See `Probabilities`: the book has no numbers."""
        return [()]
