"""Metrics with a value for each sample: means, standard errors, and paired differences to full precision.

Samples of one prompt are alike, so their errors are not independent: with m samples a prompt and intraclass correlation
ρ the plain standard error is too small by √(1 + (m - 1) ρ). So where prompts repeat, a value is the mean over prompts
of the prompts' means, and its error is over prompts (the cluster-robust error of a balanced design; Liang & Zeger 1986,
doi 10.1093/biomet/73.1.13). A difference to full precision is that of sample and sample, of the same prompt and noise.
"""

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import Metric, Result, Samples
from qdit.eval.reference import Reference


class Mean(NamedTuple):
    """A mean, its standard error (None for one value, or one cluster), and how many clusters it is over, if fewer."""

    value: float
    stderr: float | None
    clusters: int | None = None


def mean_of(values: Float[Tensor, " n"], clusters: Sequence[Hashable] | None = None) -> Mean:
    """Mean over clusters of their means, with its error over clusters; without clusters each value is one.

    >>> values = torch.tensor([1.0, 3.0, 6.0, 6.0])
    >>> mean_of(values, ["cat", "cat", "dog", "dog"])
    Mean(value=4.0, stderr=2.0, clusters=2)
    """
    n, count = len(values), None
    if clusters is not None and len(numbers := {key: number for number, key in enumerate(dict.fromkeys(clusters))}) < n:
        member = torch.tensor([numbers[key] for key in clusters])
        total = torch.zeros(len(numbers), dtype=torch.float64).index_add(0, member, values.double())
        values, n, count = total / member.bincount(), len(numbers), len(numbers)
    return Mean(float(values.mean()), float(values.std() / n**0.5) if n > 1 else None, count)


@dataclass(frozen=True, kw_only=True)
class PerSample(Metric):
    """The mean of a value for each sample; an image, or a clip, is a sample."""

    @abstractmethod
    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """One value for each of `samples`; only a paired metric looks at `full_precision`."""

    def by_frame(self, samples: Samples, full_precision: Samples) -> list[float] | None:
        """The mean over clips at each frame; None where a metric has no such curve, or for images."""
        return None

    def compute(self, samples: Samples, full_precision: Samples, reference: Reference | None = None) -> Result:
        """Mean and standard error over samples, or prompts; an unpaired metric has a difference to full precision.

        Raises:
            UserError: the sets differ in size or shape, or a value is not finite.
        """
        if samples.n != full_precision.n:
            raise UserError(f"{samples.n} samples cannot be paired with {full_precision.n} of full precision")
        values = self._each(samples, full_precision)
        own, change = mean_of(values, samples.clusters), None
        if not self.paired and samples is not full_precision:
            change = mean_of(values - self._each(full_precision, full_precision), samples.clusters)
        return Result(
            value=own.value,
            stderr=own.stderr,
            n=samples.n,
            higher_is_better=self.higher_is_better,
            delta=change.value if change else None,
            delta_stderr=change.stderr if change else None,
            clusters=own.clusters,
            by_frame=self.by_frame(samples, full_precision) if self.paired else None,
            each=values,
        )

    def _each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """`each`, whole and finite."""
        values = self.each(samples, full_precision)
        if len(values) != samples.n:
            raise UserError(f"{len(values)} values for {samples.n} samples; the stored samples are incomplete")
        if not values.isfinite().all():
            bad = int((~values.isfinite()).nonzero()[0])
            raise UserError(f"{type(self).__name__} of sample {bad} is not finite; its features or pixels are damaged")
        return values


@dataclass(frozen=True, kw_only=True)
class PairedMetric(PerSample):
    """A comparison of sample i with sample i of full precision, which it does not apply to."""

    modalities = ("image", "video")
    paired = True
