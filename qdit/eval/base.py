"""Interfaces of an evaluation: from `Samples` a `Metric` computes one `Result`.

Everything is ordered by sample index 0..n-1; sample i has the same noise and label in every run of a protocol, which
is what makes differences to full precision paired.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from qdit.eval.reference import Reference

Features = dict[str, Tensor]
"""`pooled` float32 [n, D], `spatial` float32 [n, S] and `logits` float32 [n, K] of one extractor."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number with its error bar; `delta` is the paired difference to full precision, None where there is none."""

    value: float
    stderr: float | None
    n: int
    higher_is_better: bool
    delta: float | None = None
    delta_stderr: float | None = None

    @classmethod
    def mean_of(cls, values: Float[Tensor, " n"], higher_is_better: bool) -> "Result":
        """Mean and standard error over samples; one sample alone has no error."""
        n = len(values)
        stderr = float(values.std() / n**0.5) if n > 1 else None
        return cls(value=float(values.mean()), stderr=stderr, n=n, higher_is_better=higher_is_better)


@runtime_checkable
class Samples(Protocol):
    """The samples of one run, in the order of their index."""

    n: int

    def latents(self) -> Tensor:
        """Final latents, float32 [n, C, h, w]."""
        ...

    def images(self) -> Iterator[Tensor]:
        """Decoded images in chunks, uint8 [b, 3, H, W]."""
        ...

    def features(self, extractor: str) -> Features:
        """Features of all samples by the named extractor."""
        ...


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """Configuration of one metric; a `paired` one compares sample i with sample i and is skipped for full precision."""

    paired: ClassVar[bool] = False
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    """What a model must make to be measured: "image", "video"."""
    higher_is_better: ClassVar[bool]
    extractor: str | None = None
    """Name of the extractor whose features it reads (`qdit.eval.extractor`); None reads none."""

    def preflight(
        self, n: int | None = None, reference: "Reference | None" = None, image_size: int | None = None
    ) -> list[str]:
        """Sentences on what would fail after sampling `n` images of `image_size` px; what is None is not checked."""
        return []

    @abstractmethod
    def compute(self, samples: Samples, full_precision: Samples, reference: "Reference | None") -> Result:
        """The metric of `samples`; pass `samples` itself as `full_precision` to evaluate full precision.

        Raises:
            UserError: the two sets do not hold the same indices, or the reference lacks what the metric needs.
        """
