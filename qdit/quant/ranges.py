"""Range (clipping) rules: which interval a grid covers. Minimum to maximum, percentiles, or the range of least error.

The field calls these range estimators, or calibrators; what lies beyond the range is clipped. Each class maps rows
[rows, n] to (lo, hi), both [rows, 1], for rows of any length. No rule loops over rows. Quantiles come from the sorted
tails alone, and are exact; errors are summed in pieces that fit into a processor's cache.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Protocol

import torch
from annotated_types import Gt, Lt, MinLen
from jaxtyping import Float
from torch import Tensor

from qdit.checked import Checked, Count, Positive, UpperShare
from qdit.errors import UserError
from qdit.quant.affine import Affine
from qdit.quant.grid import RowGrid, covering, extent, mapped, shared
from qdit.quant.spec import QuantSpec

CHUNK_VALUES = 2**25  # values of all candidates that are held at once: 128 MiB
PIECE_VALUES = 2**17  # values whose error is computed at once: 512 KiB, which stay in cache through all passes


class Range(Protocol):
    """A rule that finds the range of each row; config only.

    One that goes with grids whose scale is a norm (`lloyd_max`) says so by `of_norms = True`, and begins with
    `qdit.quant.grid.extent`: what such a grid covers is no value of the row.
    """

    def __call__(self, rows: Float[Tensor, "rows n"], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """(lo, hi), both [rows, 1]; `spec` says which grid will cover them."""
        ...


class Trying(ABC):
    """A range rule that rounds to candidate grids: it must know what the scales of the deployed grid have in common."""

    @abstractmethod
    def __call__(
        self, rows: Float[Tensor, "rows n"], spec: QuantSpec, whole: Float[Tensor, "#rows 1"] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Range`; `whole` is that common part (`qdit.quant.grid.shared`), None for the one of `rows`."""


def range_of(
    rule: Range, rows: Float[Tensor, "rows n"], spec: QuantSpec, whole: Float[Tensor, "#rows 1"] | None
) -> tuple[Tensor, Tensor]:
    """(lo, hi), both [rows, 1]: the ranges that a rule finds for a grid whose scales have `whole` in common."""
    return rule(rows, spec, whole) if isinstance(rule, Trying) else rule(rows, spec)


def check_rule(rule: Range, *grids: str) -> None:
    """Refuse a rule that finds values where a grid's scale is a norm.

    Raises:
        UserError: it does.
    """
    if "lloyd_max" in grids and not getattr(rule, "of_norms", False):
        name = type(rule).__name__
        raise UserError(
            f"range {name}: it finds a range among the values, and grid=lloyd_max is scaled by the norm of each row; "
            "use range=minmax or range=mse with it"
        )


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """The row's minimum and maximum; where a norm is the scale, what that covers (`qdit.quant.grid.extent`)."""

    of_norms: ClassVar[bool] = True

    def __call__(self, rows: Float[Tensor, "rows n"], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """(lo, hi), both [rows, 1]."""
        return extent(rows, spec)


@dataclass(frozen=True, kw_only=True)
class Percentile(Checked):
    """The row's (1 - p) and p quantiles, by linear interpolation (numpy's default).

    Args:
        p: share of values up to the upper end, above 0.5.

    Raises:
        UserError: `p` is out of range.
    """

    p: UpperShare = 0.9999

    def __call__(self, rows: Float[Tensor, "rows n"], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """(lo, hi), both [rows, 1]."""
        (found,) = outer_quantiles(rows, [self.p])
        return found


def outer_quantiles(rows: Float[Tensor, "rows n"], shares: list[float]) -> list[tuple[Tensor, Tensor]]:
    """The (1 - p) and p quantiles [rows, 1] of each share p, by linear interpolation (numpy's default).

    Only the tails beyond the smallest share are sorted. `torch.quantile` sorts everything, and refuses more than 16 M
    values, at which PTQ4DiT's release goes over to numpy.
    """
    last = rows.shape[-1] - 1
    first = int(min(shares) * last)  # of the values that the upper quantiles need
    upper = rows.topk(last + 1 - first, -1).values.flip(-1)
    lower = rows.topk(min(int((1 - min(shares)) * last) + 2, last + 1), -1, largest=False).values

    def quantile(q: float, tail: Tensor, offset: int) -> Tensor:
        position = q * last
        below = int(position)
        above = min(below + 1, last)
        return torch.lerp(tail[:, below - offset], tail[:, above - offset], position - below).unsqueeze(-1)

    return [(quantile(1 - p, lower, 0), quantile(p, upper, first)) for p in shares]


@dataclass(frozen=True, kw_only=True)
class PercentileMSE(Checked, Trying):
    """Of a few percentile ranges, the one with the least mean |x - x̂|^`power` (PTQ4DiT's release; RepQ-ViT).

    The first of equal candidates wins. As in the release, the min-max range is not among the candidates. With the grid
    `asymmetric_free` the zero point is the released one too: an integer that need not lie within the code range.

    Args:
        shares: p of each candidate (see `Percentile`).
        power: of the error.

    Raises:
        UserError: no shares, or a value out of range.
    """

    shares: Annotated[list[UpperShare], MinLen(1)] = field(default_factory=lambda: [0.999, 0.9999, 0.99999])
    power: Positive = 2.0

    def __call__(
        self, rows: Float[Tensor, "rows n"], spec: QuantSpec, whole: Float[Tensor, "#rows 1"] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(lo, hi), both [rows, 1]; see `Trying`."""
        whole = shared(rows, spec) if whole is None else whole
        candidates = outer_quantiles(rows, self.shares)
        errors = [rounding_error(rows, covering(rows, lo, hi, spec, whole), self.power) for lo, hi in candidates]
        best = torch.stack(errors).argmin(0).view(1, -1, 1)
        lo, hi = (torch.stack(ends).gather(0, best)[0] for ends in zip(*candidates, strict=True))
        return lo, hi


def rounding_error(rows: Float[Tensor, "rows n"], grid: RowGrid, power: float) -> Float[Tensor, " rows"]:
    """Mean |x - x̂|^power of each row on its grid, float64."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    length = min(rows.shape[-1], PIECE_VALUES)
    height = max(1, PIECE_VALUES // length)
    pieces = [slice(first, first + height) for first in range(0, len(rows), height)]
    if not isinstance(grid, Affine):
        for chosen in pieces:
            own = mapped(grid, lambda part, chosen=chosen: part[chosen])
            for piece in rows[chosen].split(length, -1):
                total[chosen] += own.round(piece).sub_(piece).abs_().pow_(power).sum(-1, dtype=torch.float64)
        return total / rows.shape[-1]
    ends = grid.scale, grid.low - grid.zero_point, grid.high - grid.zero_point
    for chosen in pieces:
        scale, low, high = (end[chosen] for end in ends)
        for piece in rows[chosen].split(length, -1):
            # In units of the scale: |x / s - code| s is the error.
            scaled = piece / scale
            error = scaled.round().clamp_(low, high).sub_(scaled)
            total[chosen] += error.abs_().pow_(power).sum(-1, dtype=torch.float64)
    return total / rows.shape[-1] * grid.scale[:, 0].double() ** power


@dataclass(frozen=True, kw_only=True)
class MSE(Checked, Trying):
    """The min-max range times the factor in (1 - `shrink`, 1] with the least mean |x - x̂|^`power`.

    GPTQ (arXiv 2210.17323) and Q-DiT use power 2.4; GPTQ's released search has 80 candidates. The first of equal
    candidates (the widest range) wins.

    Args:
        candidates: how many factors are tried, evenly spaced from 1 down.
        shrink: how far down.
        power: of the error.

    Raises:
        UserError: a value is out of range.
    """

    candidates: Count = 100
    shrink: Annotated[float, Gt(0), Lt(1)] = 0.8
    power: Positive = 2.4
    of_norms: ClassVar[bool] = True

    def factors(self) -> list[float]:
        """The candidate factors, from 1 down."""
        return [1 - self.shrink * i / self.candidates for i in range(self.candidates)]

    def __call__(
        self, rows: Float[Tensor, "rows n"], spec: QuantSpec, whole: Float[Tensor, "#rows 1"] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(lo, hi), both [rows, 1]; see `Trying`."""
        whole = shared(rows, spec) if whole is None else whole
        ends = MinMax()(rows, spec)
        factors = torch.tensor(self.factors(), device=rows.device, dtype=rows.dtype)
        held = max(1, CHUNK_VALUES // rows.numel())
        errors = [self._errors(rows, ends, chunk, spec, whole) for chunk in factors.split(held)]
        best = factors[torch.cat(errors).argmin(0)].unsqueeze(-1)
        return ends[0] * best, ends[1] * best

    def _errors(
        self, rows: Tensor, ends: tuple[Tensor, Tensor], factors: Tensor, spec: QuantSpec, whole: Tensor | None
    ) -> Tensor:
        """Mean |x - x̂|^power [candidates, rows]."""
        repeated = rows.repeat(len(factors), 1)
        lo, hi = ((end * factors.view(-1, 1, 1)).flatten(0, 1) for end in ends)
        if whole is not None and len(whole) > 1:
            whole = whole.repeat(len(factors), 1)
        grid = covering(repeated, lo, hi, spec, whole)
        error = grid.round(repeated).sub_(repeated).abs_().pow_(self.power).mean(-1)
        return error.view(len(factors), -1)
