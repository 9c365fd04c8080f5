"""Interfaces of an evaluation: from `Samples` a `Metric` computes one `Result`.

Everything is ordered by sample index 0..n-1; sample i has the same noise and label in every run of a protocol, which
is what makes differences to full precision paired.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from qdit.errors import Advised

if TYPE_CHECKING:
    from qdit.eval.extractor import FeatureExtractor
    from qdit.eval.reference import Reference


Features = dict[str, Tensor]
"""`pooled` float32 [n, D], `spatial` [n, S] and `logits` [n, K] of one extractor; of clips [n, T, D] and so on."""


@dataclass(frozen=True)
class Shown:
    """How a metric is printed: its label (None: its name), what follows it (a unit), digits, and a factor."""

    label: str | None = None
    unit: str = ""
    digits: int = 3
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number with its error bar; `delta` is the paired difference to full precision, None where there is none."""

    value: float
    stderr: float | None
    n: int
    higher_is_better: bool | None
    """None: neither; the nearer to full precision's, the better."""
    delta: float | None = None
    delta_stderr: float | None = None
    clusters: int | None = None
    """The number of prompts, where several samples share one: errors are then over prompts."""
    by_frame: list[float] | None = None
    """The mean over clips of each frame, or step between frames, of a paired metric."""
    protocol: str | None = None
    """How it was made, where that is not as a run makes it: by a program elsewhere, of encoded videos."""
    each: Float[Tensor, " n"] | None = field(default=None, repr=False, compare=False)
    """A value for each sample; tables compare methods over them."""

    def record(self) -> dict[str, Any]:
        """What a run's record keeps: values of single samples are kept apart, and what does not apply is left out."""
        kept = asdict(self)
        del kept["each"]
        newer = ("clusters", "by_frame", "protocol")
        return {key: value for key, value in kept.items() if value is not None or key not in newer}


@dataclass(frozen=True)
class Piece:
    """Some frames, in order, of some neighbouring samples; an image is a clip of one frame."""

    frames: UInt8[Tensor, "b k 3 H W"]
    start: int
    """The number of the first of these frames in their clips."""
    last: bool
    """Whether the clips end here."""


@runtime_checkable
class Samples(Protocol):
    """The samples of one run, in the order of their index."""

    @property
    def n(self) -> int:
        """The number of samples."""
        ...

    @property
    def prompts(self) -> Sequence[str]:
        """What each sample was asked to show: a prompt, or the name of a class; empty where that is not known."""
        ...

    @property
    def clusters(self) -> Sequence[str] | None:
        """The prompt's id of each sample, by which errors are grouped; None for classes, whose samples are separate."""
        ...

    def latents(self) -> Tensor:
        """Final latents, float32 [n, C, h, w], or [n, C, T, h, w] of clips."""
        ...

    def images(self) -> Iterator[Tensor]:
        """Decoded images in chunks, uint8 [b, 3, H, W], or clips, uint8 [b, T, 3, H, W]."""
        ...

    def pieces(self, extractors: Sequence[str] = ()) -> Iterator[Piece]:
        """All samples in pieces, the frames of a clip one piece after the other, so that memory does not grow with it.

        Features of these extractors are made on the way, where they are kept and missing, of what is decoded anyway.
        """
        ...

    def missing(self, extractors: Sequence[str]) -> list[str]:
        """Those of these extractors whose features are still to be made."""
        ...

    def features(self, extractor: str) -> Features:
        """Features of all samples by the named extractor."""
        ...

    def texts(self, extractor: str) -> Float[Tensor, "n D"]:
        """Features of each sample's prompt, by an extractor that reads text."""
        ...


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """Configuration of one metric; a `paired` one compares sample i with sample i and is skipped for full precision."""

    paired: ClassVar[bool] = False
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    """What a model must make to be measured: "image", "video"."""
    fastest: ClassVar[int | None] = None
    """Frames a second of the fastest clips that it judges; None: of any."""
    higher_is_better: ClassVar[bool | None]
    needs_reference: ClassVar[bool] = False
    """Whether it compares with statistics of a data set."""
    fewest_references: ClassVar[int] = 1
    """Images of a data set, below which it is not defined."""
    shown: ClassVar[Shown | None] = None
    """How it is printed; None leaves that to the table (`qdit.tables.quantity`)."""
    extractor: str | None = None
    """Name of the extractor whose features it reads (`qdit.eval.extractor`); None reads none."""

    @property
    def fewest_frames(self) -> int:
        """Frames of a clip, below which it is not defined."""
        return 1

    def short(self, frames: float) -> list[str]:
        """A sentence if clips of so many frames are too short for it."""
        held = f"{frames} frame{'s' * (frames != 1)}"
        if frames >= self.fewest_frames:
            return []
        return [f"it needs clips of {self.fewest_frames} frames or more, and these have {held}; leave it out"]

    @property
    def suite(self) -> str | None:
        """The data set whose prompts alone it judges."""
        return None

    def network(self) -> "FeatureExtractor | None":
        """The extractor, not loaded yet; None where it reads none."""
        from qdit.eval.extractor import make_extractor  # torch's networks are imported where one is used

        return make_extractor(self.extractor) if self.extractor else None

    def preflight(
        self, n: int | None = None, reference: "Reference | None" = None, image_size: int | None = None
    ) -> list[str]:
        """Sentences on what would fail after sampling `n` images of `image_size` px; what is None is not checked."""
        network = self.network()
        return network.preflight() if network else []

    def unreadable(self, prompts: Sequence[str]) -> list[str]:
        """Sentences on why these prompts, of the samples to come, cannot be judged."""
        return []

    @abstractmethod
    def compute(self, samples: Samples, full_precision: Samples, reference: "Reference | None") -> Result:
        """The metric of `samples`; pass `samples` itself as `full_precision` to evaluate full precision.

        Raises:
            UserError: the two sets do not hold the same indices, or the reference lacks what the metric needs.
        """


def no_prompts(problem: str) -> Advised:
    """The sentence that a metric needs prompts."""
    return Advised(problem, run="choose a data set of prompts (dataset=)", folder="give them with --prompts FILE")


@dataclass(frozen=True, kw_only=True)
class OfFeatures(Metric):
    """A metric of one extractor's features; `weights` and `allow_download` only say how that is found."""

    extractor: str  # type: ignore[assignment] - narrower than the base: never None
    weights: str | None = None
    allow_download: bool = False

    def __post_init__(self) -> None:
        """Find the extractor.

        Raises:
            UserError: its name is unknown.
        """
        self.network()

    def network(self) -> "FeatureExtractor":
        """The extractor, not loaded yet, which looks for its weights where the config says."""
        from qdit.eval.extractor import make_extractor

        return make_extractor(self.extractor, self.weights, self.allow_download)
