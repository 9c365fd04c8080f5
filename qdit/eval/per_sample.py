"""Metrics with a value for each sample: means, standard errors, and paired differences to full precision.

Samples of one prompt are alike, so their errors are not independent: with m samples a prompt and intraclass correlation
ρ the plain standard error is too small by √(1 + (m - 1) ρ). So where prompts repeat, a value is the mean over prompts
of the prompts' means, and its error is over prompts (the cluster-robust error of a balanced design; Liang & Zeger 1986,
doi 10.1093/biomet/73.1.13). A difference to full precision is that of sample and sample, of the same prompt and noise.
A dimension of VBench judges, of VBench's suite, the samples of its own prompts: the values of others are NaN.
"""

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import nan
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import Metric, Result, Samples
from qdit.eval.reference import Reference
from qdit.eval.vbench.suite import none_of, own_of


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


def mean_of_judged(values: Float[Tensor, " n"], clusters: Sequence[Hashable] | None) -> tuple[Mean, int] | None:
    """The mean of the values that are not NaN, by clusters, and their number; None if there are none."""
    kept = ~values.isnan()
    if not kept.any():
        return None
    chosen = None if clusters is None else [each for each, keep in zip(clusters, kept.tolist(), strict=True) if keep]
    return mean_of(values[kept], chosen), int(kept.sum())


@dataclass(frozen=True, kw_only=True)
class PerSample(Metric):
    """The mean of a value for each sample; an image, or a clip, is a sample."""

    def judges(self) -> str | None:
        """The dimension of VBench that it is; None for a metric that is none, and judges any samples."""
        return None

    def unreadable(self, prompts: Sequence[str]) -> list[str]:
        """A sentence if the prompts are of VBench's suite, and none is its own."""
        return none_of(dimension, prompts) if (dimension := self.judges()) is not None else []

    @abstractmethod
    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """One value for each of `samples`; only a paired metric looks at `full_precision`."""

    def by_frame(self, samples: Samples, full_precision: Samples) -> list[float] | None:
        """The mean over clips at each frame; None where a metric has no such curve, or for images."""
        return None

    def compute(self, samples: Samples, full_precision: Samples, reference: Reference | None = None) -> Result:
        """Mean and standard error over samples, or prompts; an unpaired metric has a difference to full precision.

        Raises:
            UserError: the sets differ in size or shape, a value is not finite, or no sample is judged.
        """
        if samples.n != full_precision.n:
            raise UserError(f"{samples.n} samples cannot be paired with {full_precision.n} of full precision")
        values = self._each(samples, full_precision)
        if (own := mean_of_judged(values, samples.clusters)) is None:
            raise UserError(f"{self.judges()} judges none of the {samples.n} samples")
        change = None
        if not self.paired and samples is not full_precision:
            change = mean_of_judged(values - self._each(full_precision, full_precision), samples.clusters)
        return Result(
            value=own[0].value,
            stderr=own[0].stderr,
            n=own[1],
            higher_is_better=self.higher_is_better,
            delta=change[0].value if change else None,
            delta_stderr=change[0].stderr if change else None,
            clusters=own[0].clusters,
            by_frame=self.by_frame(samples, full_precision) if self.paired else None,
            each=values,
        )

    def _each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """`each`, whole and finite; NaN where a sample is not judged."""
        values = self.each(samples, full_precision)
        if len(values) != samples.n:
            raise UserError(f"{len(values)} values for {samples.n} samples; the stored samples are incomplete")
        if not values.isfinite().all():
            bad = int((~values.isfinite()).nonzero()[0])
            raise UserError(f"{type(self).__name__} of sample {bad} is not finite; its features or pixels are damaged")
        return values.masked_fill(~self.judged(samples), nan)

    def judged(self, samples: Samples) -> Bool[Tensor, " n"]:
        """Which samples count: of VBench's suite those of the dimension's own prompts, else all."""
        if (dimension := self.judges()) is None or not samples.prompts:
            return torch.ones(samples.n, dtype=torch.bool)
        return torch.tensor(own_of(dimension, samples.prompts))


@dataclass(frozen=True, kw_only=True)
class PairedMetric(PerSample):
    """A comparison of sample i with sample i of full precision, which it does not apply to."""

    modalities = ("image", "video")
    paired = True
