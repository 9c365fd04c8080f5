"""Moments, the Fréchet distance and the delete-a-group jackknife, in float64.

Fréchet: Dowson & Landau 1982; Heusel et al. (FID, arXiv 1706.08500). With R the symmetric root of the reference's
covariance and Z the centred samples times R / sqrt(n - 1), tr (Σ_r Σ)^(1/2) is the nuclear norm of Z: the roots of the
eigenvalues of the smaller of Z Zᵀ and Zᵀ Z. So R is found once for a reference, and leaving a group out costs one
symmetric eigenvalue problem of side min(n, D). No matrix square root of a product (`scipy.linalg.sqrtm`) is ever taken.

Error bars: groups are index mod 20 for every method. Where samples share prompts they are whole prompts: number of the
prompt mod 20, or each prompt by itself where there are fewer than 40, and of fewer than four there is no error. The
jackknife over groups has the right coverage for a Fréchet distance, where a percentile bootstrap has none, because
resampling adds a second copy of the estimator's bias.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qdit.errors import Advised

GROUPS = 20
MIN_SAMPLES = 2 * GROUPS  # two in each group: below that the jackknife says nothing
MIN_PROMPTS = 4  # an error of fewer groups is itself wrong by half or more: 1 / √(2 (groups - 1))


def shared_prompts(prompts: Sequence[str] | None) -> int | None:
    """The number of prompts where samples share them; None where there are none, or each sample has its own.

    >>> shared_prompts(["cat", "cat", "dog"]), shared_prompts(["cat", "dog"]), shared_prompts(None)
    (2, None, None)
    """
    count = len(set(prompts or ()))
    return count if count < len(prompts or ()) else None


def too_few(n: int, instead: str = "") -> Advised:
    """The sentence about so few samples that no error can be told, and what a run may do instead of taking more."""
    problem = f"{n} samples are too few, {MIN_SAMPLES} are the least"
    return Advised(problem, run=f"raise num_samples{instead}", folder="give a folder of more, or other --metrics")


def groups_of(n: int, prompts: Sequence[str] | None = None) -> Int[Tensor, " n"]:
    """Jackknife group of each sample index; samples that share a prompt are left out together.

    Fewer than `MIN_SAMPLES` prompts are a group each, so that all groups are alike. Fewer than `MIN_PROMPTS` make no
    groups (`Jackknife.stderr_over` has no error of them); the index does, by which a bias of order 1/n is still found.
    """
    count = shared_prompts(prompts)
    if prompts is None or count is None or count < MIN_PROMPTS:
        return torch.arange(n) % GROUPS
    number = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    groups = torch.tensor([number[prompt] for prompt in prompts])
    return groups if count < MIN_SAMPLES else groups % GROUPS


def number_of(groups: Int[Tensor, " n"]) -> int:
    """How many jackknife groups there are; they are numbered from 0."""
    return int(groups.max()) + 1


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter about the mean; `merge` is the update of Chan, Golub and LeVeque (1979)."""

    n: int
    mean: Float[Tensor, " dim"]
    scatter: Float[Tensor, "dim dim"]

    @classmethod
    def of(cls, x: Float[Tensor, "n dim"]) -> "Moments":
        """Moments of the rows of x, accumulated in float64 whatever its type."""
        x = x.double()
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together."""
        n = self.n + other.n
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.n * other.n / n)
        return Moments(n, self.mean + shift * (other.n / n), scatter)

    def without(self, part: "Moments") -> "Moments":
        """Moments of what is left when `part`, one of the merged sets, is taken out again."""
        n = self.n - part.n
        mean = self.mean + (self.mean - part.mean) * (part.n / n)
        shift = part.mean - mean
        return Moments(n, mean, self.scatter - part.scatter - torch.outer(shift, shift) * (n * part.n / self.n))

    def covariance(self) -> Float[Tensor, "dim dim"]:
        """Unbiased covariance (n - 1), as numpy.cov."""
        return self.scatter / (self.n - 1)


@dataclass(frozen=True)
class Jackknife:
    """An estimate on all samples and the estimates with each group left out."""

    full: float
    left_out: Float[Tensor, " groups"]

    @classmethod
    def over_groups(cls, groups: Int[Tensor, " n"], estimate: Callable[[Bool[Tensor, " n"]], float]) -> "Jackknife":
        """Call `estimate` with the mask of all samples and then with each group left out."""
        left_out = [estimate(groups != g) for g in range(number_of(groups))]
        return cls(estimate(torch.ones(len(groups), dtype=torch.bool)), torch.tensor(left_out, dtype=torch.float64))

    @property
    def stderr(self) -> float:
        """Delete-a-group standard error."""
        g = len(self.left_out)
        return math.sqrt((g - 1) / g * float((self.left_out - self.left_out.mean()).square().sum()))

    def stderr_over(self, prompts: Sequence[str] | None) -> float | None:
        """`stderr`, or None where all samples are of so few prompts that nothing is known of others."""
        count = shared_prompts(prompts)
        return None if count is not None and count < MIN_PROMPTS else self.stderr

    @property
    def corrected(self) -> float:
        """The estimate less its bias of order 1/n: G f - (G - 1) mean of the left-out estimates."""
        g = len(self.left_out)
        return g * self.full - (g - 1) * float(self.left_out.mean())

    def minus(self, other: "Jackknife") -> "Jackknife":
        """The paired difference of two estimates over the same indices."""
        return Jackknife(self.full - other.full, self.left_out - other.left_out)

    def bias_corrected(self) -> "Jackknife":
        """The same with `full` corrected; the spread of the left-out estimates still gives its standard error."""
        return Jackknife(self.corrected, self.left_out)


def symmetric_root(sigma: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """Symmetric square root of a covariance; negative eigenvalues are rounding and count as 0."""
    values, vectors = torch.linalg.eigh(sigma.double())
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def trace_root(matrix: Float[Tensor, "dim dim"]) -> float:
    """tr M^(1/2) of a symmetric positive semidefinite matrix."""
    return float(torch.linalg.eigvalsh(matrix).clamp(min=0).sqrt().sum())


def frechet_distance(
    mu_1: Float[Tensor, " dim"],
    sigma_1: Float[Tensor, "dim dim"],
    mu_2: Float[Tensor, " dim"],
    sigma_2: Float[Tensor, "dim dim"],
) -> float:
    """Fréchet distance (squared) of two Gaussians: |Δμ|² + tr Σ1 + tr Σ2 - 2 tr (Σ1 Σ2)^(1/2)."""
    mu_1, sigma_1, mu_2, sigma_2 = (t.double() for t in (mu_1, sigma_1, mu_2, sigma_2))
    root = symmetric_root(sigma_1)
    overlap = trace_root(root @ sigma_2 @ root)
    return float((mu_1 - mu_2).square().sum() + sigma_1.trace() + sigma_2.trace()) - 2 * overlap


def frechet_jackknife(
    x: Float[Tensor, "n dim"],
    mu: Float[Tensor, " dim"],
    root: Float[Tensor, "dim dim"],
    groups: Int[Tensor, " n"] | None = None,
) -> Jackknife:
    """Fréchet distance of samples to a reference, and with each group left out.

    Args:
        x: features of the samples.
        mu: mean of the reference, float64.
        root: symmetric root of the covariance of the reference, float64.
        groups: of the jackknife; None takes `groups_of`.
    """
    groups = groups_of(len(x)) if groups is None else groups
    x = x.double() - mu  # about the reference's mean: the distance of the means is then the mean itself
    n, dim = x.shape
    squares, reference_trace = x.square().sum(1), float(root.square().sum())
    overlap = _overlap_by_samples(x @ root) if n <= dim else _overlap_by_features(x @ root)

    def distance(keep: Bool[Tensor, " n"]) -> float:
        kept = int(keep.sum())
        offset = float(x[keep].mean(0).square().sum())
        trace = (float(squares[keep].sum()) - kept * offset) / (kept - 1)
        return offset + trace + reference_trace - 2 * overlap(keep)

    return Jackknife.over_groups(groups, distance)


def _overlap_by_samples(z: Float[Tensor, "n dim"]) -> Callable[[Bool[Tensor, " n"]], float]:
    """Nuclear norm of the kept, centred rows of z over sqrt(kept - 1), from their n x n Gram matrix."""
    gram = z @ z.T

    def overlap(keep: Bool[Tensor, " n"]) -> float:
        kept = gram[keep][:, keep]
        row = kept.mean(0)
        return trace_root((kept - row - row[:, None] + row.mean()) / (len(kept) - 1))

    return overlap


def _overlap_by_features(z: Float[Tensor, "n dim"]) -> Callable[[Bool[Tensor, " n"]], float]:
    """The same from the dim x dim covariance of z: all moments, less those of the rows left out."""
    total = Moments.of(z)

    def overlap(keep: Bool[Tensor, " n"]) -> float:
        kept = total if bool(keep.all()) else total.without(Moments.of(z[~keep]))
        return trace_root(kept.covariance())

    return overlap
