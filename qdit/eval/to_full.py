"""Distances of a run's samples to full precision's own: how far quantization moved the distribution.

The papers' "FID to FP16" (ViDiT-Q's FPFID, arXiv 2406.02540), and FVD-FP16 with a network of clips. Sample i of both
sets has the same noise and condition, so that identical outputs are at distance 0 whatever their number, and most of
the bias of a distance to real images is absent. Left out: subsets, by which some average a KID.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import OfFeatures, Result, Samples, Shown
from qdit.eval.kid import TILE, kernel
from qdit.eval.reference import Reference
from qdit.eval.statistics import (
    MIN_SAMPLES,
    Jackknife,
    Moments,
    frechet_distance,
    groups_of,
    number_of,
    shared_prompts,
    too_few,
)


def paired_frechet(x: Float[Tensor, "n D"], y: Float[Tensor, "n D"], groups: Int[Tensor, " n"]) -> Jackknife:
    """Fréchet distance of two sets of features, and with each jackknife group left out of both.

    tr (Σx Σy)^(1/2) is the nuclear norm of X Yᵀ / (n - 1), X and Y centred, where that is smaller than the covariances.
    """
    centre = (x.double().mean(0) + y.double().mean(0)) / 2
    x, y = x.double() - centre, y.double() - centre
    estimate = _by_samples(x, y) if len(x) <= x.shape[1] else _by_features(x, y)
    return Jackknife.over_groups(groups, estimate)


def _by_samples(x: Tensor, y: Tensor) -> Callable[[Bool[Tensor, " n"]], float]:
    cross, squares = x @ y.T, x.square().sum(1) + y.square().sum(1)

    def distance(keep: Bool[Tensor, " n"]) -> float:
        n, kept = int(keep.sum()), cross[keep][:, keep]
        means = x[keep].mean(0), y[keep].mean(0)
        centred = kept - kept.mean(0) - kept.mean(1, keepdim=True) + kept.mean()
        traces = float(squares[keep].sum()) - n * sum(float(mean.square().sum()) for mean in means)
        overlap = float(torch.linalg.svdvals(centred).sum())
        return float((means[0] - means[1]).square().sum()) + (traces - 2 * overlap) / (n - 1)

    return distance


def _by_features(x: Tensor, y: Tensor) -> Callable[[Bool[Tensor, " n"]], float]:
    whole = Moments.of(x), Moments.of(y)

    def distance(keep: Bool[Tensor, " n"]) -> float:
        if bool(keep.all()):
            one, other = whole
        else:
            one, other = (all_.without(Moments.of(z[~keep])) for all_, z in zip(whole, (x, y), strict=True))
        return frechet_distance(one.mean, one.covariance(), other.mean, other.covariance())

    return distance


def paired_kernel(x: Float[Tensor, "n D"], y: Float[Tensor, "n D"], groups: Int[Tensor, " n"]) -> Jackknife:
    """Unbiased MMD² of paired sets: mean over i ≠ j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i).

    Gretton et al. 2012 (JMLR 13, lemma 6), whose statistic takes no pair's own distance: 0 where the sets are equal.
    """
    member = torch.nn.functional.one_hot(groups, number_of(groups)).double()
    by_group = torch.cat([_terms(x, y, rows) @ member for rows in torch.arange(len(x)).split(TILE)])
    sums, counts = member.T @ by_group, member.sum(0)
    n = counts.sum()
    left = sums.sum() - sums.sum(0) - sums.sum(1) + sums.diagonal()
    return Jackknife(float(sums.sum() / (n * (n - 1))), left / ((n - counts) * (n - counts - 1)))


def _terms(x: Float[Tensor, "n D"], y: Float[Tensor, "n D"], rows: Int[Tensor, " k"]) -> Float[Tensor, "k n"]:
    """The terms of `paired_kernel` of some samples i with all j, 0 where i = j."""
    one, other = x[rows], y[rows]
    terms = kernel(one, x) + kernel(other, y) - kernel(one, y) - kernel(other, x)
    terms[torch.arange(len(rows)), rows] = 0
    return terms


@dataclass(frozen=True, kw_only=True)
class ToFull(OfFeatures):
    """A distance of a set of samples to full precision's, with a delete-a-group jackknife error."""

    paired = True
    higher_is_better = False

    def preflight(
        self, n: int | None = None, reference: Reference | None = None, image_size: int | None = None
    ) -> list[str]:
        """What the extractor lacks, and too few samples."""
        few = [too_few(n)] if n is not None and n < MIN_SAMPLES else []
        return super().preflight(n, None, image_size) + few

    @abstractmethod
    def jackknife(self, x: Float[Tensor, "n D"], y: Float[Tensor, "n D"], groups: Int[Tensor, " n"]) -> Jackknife:
        """The distance, and without each group."""

    def compute(self, samples: Samples, full_precision: Samples, reference: Reference | None = None) -> Result:
        """The distance with its error; of clips whose frames have features, that of all frames.

        The error is over prompts where samples share them, and None where these are fewer than `MIN_PROMPTS`.

        Raises:
            UserError: the sets differ in size or shape.
        """
        x, y = (each.features(self.extractor)["pooled"] for each in (samples, full_precision))
        if x.shape != y.shape:
            raise UserError(f"features {tuple(x.shape)} cannot be paired with {tuple(y.shape)} of full precision")
        groups = groups_of(samples.n, samples.clusters)
        if x.ndim == 3:
            groups = groups.repeat_interleave(x.shape[1])
        found = self.jackknife(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), groups)
        return Result(
            value=found.full,
            stderr=found.stderr_over(samples.clusters),
            n=samples.n,
            higher_is_better=self.higher_is_better,
            clusters=shared_prompts(samples.clusters),
        )


@dataclass(frozen=True, kw_only=True)
class FIDToFull(ToFull):
    """Fréchet distance of pooled features to full precision's."""

    modalities = ("image", "video")
    shown = Shown(digits=3)

    def jackknife(self, x: Float[Tensor, "n D"], y: Float[Tensor, "n D"], groups: Int[Tensor, " n"]) -> Jackknife:
        """`paired_frechet`."""
        return paired_frechet(x, y, groups)


@dataclass(frozen=True, kw_only=True)
class KIDToFull(ToFull):
    """Kernel distance of pooled features to full precision's; never clipped: may be below 0."""

    modalities = ("image",)
    shown = Shown(None, "·10³", 3, 1e3)

    def jackknife(self, x: Float[Tensor, "n D"], y: Float[Tensor, "n D"], groups: Int[Tensor, " n"]) -> Jackknife:
        """`paired_kernel`."""
        return paired_kernel(x, y, groups)
