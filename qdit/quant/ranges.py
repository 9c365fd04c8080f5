"""Which range a grid covers: minimum to maximum, percentiles, or the shrunken range of least error.

Each class maps rows [rows, n] to (lo, hi), both [rows, 1]. All are vectorised over rows and candidates.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.errors import UserError
from qdit.quant.affine import affine, round_to_grid
from qdit.quant.spec import QuantSpec

CHUNK_VALUES = 2**25  # values of all candidates held at once: 128 MiB


class Range(Protocol):
    """A rule that finds the range of rows."""

    def __call__(self, rows: Float[Tensor, "rows n"], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """(lo, hi), both [rows, 1]."""
        ...


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """The row's minimum and maximum."""

    def __call__(self, rows: Float[Tensor, "rows n"], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """(lo, hi), both [rows, 1]."""
        return rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """The row's (1 - p) and p quantiles, by linear interpolation (numpy's default)."""

    p: float = 0.9999

    def __post_init__(self) -> None:
        if not 0.5 < self.p <= 1:
            raise UserError(f"percentile p={self.p} is not possible; a share above 0.5 and at most 1 is, such as 0.999")

    def __call__(self, rows: Float[Tensor, "rows n"], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """(lo, hi), both [rows, 1]."""
        # torch.quantile refuses more than 16 M values; a sort has no limit.
        ordered = rows.sort(-1).values

        def quantile(q: float) -> Tensor:
            position = q * (rows.shape[-1] - 1)
            below = int(position)
            above = min(below + 1, rows.shape[-1] - 1)
            return torch.lerp(ordered[:, below], ordered[:, above], position - below).unsqueeze(-1)

        return quantile(1 - self.p), quantile(self.p)


@dataclass(frozen=True, kw_only=True)
class MSE:
    """The min-max range times the factor in (1 - `shrink`, 1] with the least mean |x - x̂|^`power`.

    GPTQ and Q-DiT use power 2.4. The first of equal candidates (the widest range) wins.
    """

    candidates: int = 100
    shrink: float = 0.8
    power: float = 2.4

    def __post_init__(self) -> None:
        if self.candidates < 1 or not 0 < self.shrink < 1 or self.power <= 0:
            raise UserError(
                f"range mse: candidates={self.candidates}, shrink={self.shrink}, power={self.power}; "
                "candidates must be at least 1, shrink between 0 and 1, power above 0"
            )

    def factors(self) -> list[float]:
        """The candidate factors, from 1 down."""
        return [1 - self.shrink * i / self.candidates for i in range(self.candidates)]

    def __call__(self, rows: Float[Tensor, "rows n"], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """(lo, hi), both [rows, 1]."""
        lo, hi = MinMax()(rows, spec)
        factors = torch.tensor(self.factors(), device=rows.device, dtype=rows.dtype)
        errors = [
            self._errors(rows, lo, hi, chunk, spec) for chunk in factors.split(max(1, CHUNK_VALUES // rows.numel()))
        ]
        best = factors[torch.cat(errors).argmin(0)].unsqueeze(-1)
        return lo * best, hi * best

    def _errors(self, rows: Tensor, lo: Tensor, hi: Tensor, factors: Tensor, spec: QuantSpec) -> Tensor:
        """Mean |x - x̂|^power [candidates, rows]."""
        scaled = factors.view(-1, 1, 1)
        grid = affine((lo * scaled).flatten(0, 1), (hi * scaled).flatten(0, 1), spec)
        repeated = rows.repeat(len(factors), 1)
        error = round_to_grid(repeated, grid).sub_(repeated).abs_().pow_(self.power).mean(-1)
        return error.view(len(factors), -1)
