"""Saliences of activation channels: how large each channel of an input is, streamed over calibration data.

A salience is a greatest magnitude, s(X)_j = max |X_:j| (PTQ4DiT eq. 3; SmoothQuant eq. 4). The options differ in the
values over which it is taken, because in a diffusion model it changes with the timestep. Spearman's salience
calibration (SSC, PTQ4DiT eq. 9-11) averages the saliences of the timesteps; a timestep counts the more, the less its
ranking of channels agrees with the weight's:

    ρ_t = Spearman(s(X⁽ᵗ⁾), s(W))        η_t = exp(-ρ_t) / Σ_τ exp(-ρ_τ)        s_ρ(X) = Σ_t η_t s(X⁽ᵗ⁾)

Where the salience is constant it has no ranks, and ρ is 0; the released code gives NaN there.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


def ranks(x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """Ranks from 1 along the last axis; equal values share the mean of their ranks.

    >>> ranks(torch.tensor([3.0, 1.0, 3.0, 2.0]))
    tensor([3.5000, 1.0000, 3.5000, 2.0000], dtype=torch.float64)
    """
    ordered = x.sort(-1).values
    below = torch.searchsorted(ordered, x.contiguous())
    up_to = torch.searchsorted(ordered, x.contiguous(), right=True)
    return (below + up_to + 1).double() / 2


def spearman(rows: Float[Tensor, "rows n"], other: Float[Tensor, " n"]) -> Float[Tensor, " rows"]:
    """Spearman's rank correlation of each row with `other`; 0 where either is constant."""
    a, b = (r - r.mean(-1, keepdim=True) for r in (ranks(rows), ranks(other)))
    norms = a.norm(dim=-1) * b.norm()
    return torch.where(norms > 0, (a @ b) / norms.clamp(min=1e-30), 0.0)


def spearman_weighted(
    rows: Float[Tensor, "rows n"], weight: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, ""]]:
    """Σ exp(-ρ) s over rows s of saliences, and Σ exp(-ρ), in float64: their quotient is s_ρ; batches add up."""
    unnormalised = torch.exp(-spearman(rows, weight))
    return unnormalised @ rows.double(), unnormalised.sum()


class Gathering(Protocol):
    """Accumulates the salience of one input, batch by batch."""

    def add(self, maxima: Float[Tensor, "samples channels"], timesteps: Int[Tensor, " samples"]) -> None:
        """Take in the greatest magnitudes over the tokens of each sample, and the samples' timesteps."""
        ...

    def value(self) -> Float[Tensor, " channels"]:
        """The salience, float32."""
        ...


class Statistic(Protocol):
    """A rule that computes the salience of an input."""

    def start(self, weight: Float[Tensor, " channels"]) -> Gathering:
        """Begin with one input; `weight` is the salience of the weights that read it."""
        ...


class _Table:
    """The greatest magnitude of each channel at each timestep; memory grows with the timesteps, not with the data."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.rows: dict[int, Tensor] = {}

    def add(self, maxima: Float[Tensor, "samples channels"], timesteps: Int[Tensor, " samples"]) -> None:
        """See `Gathering`."""
        for t in timesteps.unique().tolist():
            here = maxima[timesteps == t].amax(0)
            self.rows[t] = torch.maximum(self.rows[t], here) if t in self.rows else here

    def stacked(self) -> Float[Tensor, "timesteps channels"]:
        """Rows in the order of the timesteps."""
        return torch.stack([self.rows[t] for t in sorted(self.rows)])


@dataclass(frozen=True, kw_only=True)
class Maximum:
    """Over all samples and timesteps (SmoothQuant)."""

    def start(self, weight: Tensor) -> Gathering:
        """See `Statistic`."""
        return _Maximum(weight)


class _Maximum(_Table):
    def add(self, maxima: Float[Tensor, "samples channels"], timesteps: Int[Tensor, " samples"]) -> None:
        super().add(maxima, torch.zeros_like(timesteps))

    def value(self) -> Float[Tensor, " channels"]:
        return self.rows[0]


@dataclass(frozen=True, kw_only=True)
class MiddleTimestep:
    """Over the samples at the middle one of the timesteps seen (PTQ4DiT's ablation: balancing without SSC)."""

    def start(self, weight: Tensor) -> Gathering:
        """See `Statistic`."""
        return _Middle(weight)


class _Middle(_Table):
    def value(self) -> Float[Tensor, " channels"]:
        return self.rows[sorted(self.rows)[len(self.rows) // 2]]


@dataclass(frozen=True, kw_only=True)
class FirstTimestep:
    """Over the samples at the noisiest of the timesteps seen (ViDiT-Q's paper: what is static shows there)."""

    def start(self, weight: Tensor) -> Gathering:
        """See `Statistic`."""
        return _First(weight)


class _First(_Table):
    def value(self) -> Float[Tensor, " channels"]:
        return self.rows[max(self.rows)]


@dataclass(frozen=True, kw_only=True)
class PerTimestep:
    """SSC over timesteps, each with the maximum over its samples (PTQ4DiT's paper)."""

    def start(self, weight: Tensor) -> Gathering:
        """See `Statistic`."""
        return _PerTimestep(weight)


class _PerTimestep(_Table):
    def value(self) -> Float[Tensor, " channels"]:
        total, mass = spearman_weighted(self.stacked(), self.weight)
        return (total / mass).float()


@dataclass(frozen=True, kw_only=True)
class PerRow:
    """SSC over samples, whatever their timesteps (PTQ4DiT's released code: one row of its batch, one ρ)."""

    def start(self, weight: Tensor) -> Gathering:
        """See `Statistic`."""
        return _PerRow(weight)


class _PerRow:
    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.total, self.mass = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def add(self, maxima: Float[Tensor, "samples channels"], timesteps: Int[Tensor, " samples"]) -> None:
        total, mass = spearman_weighted(maxima, self.weight)
        self.total, self.mass = self.total.to(total.device) + total, self.mass.to(mass.device) + mass

    def value(self) -> Float[Tensor, " channels"]:
        return (self.total / self.mass).float()
