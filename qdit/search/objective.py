"""The objective of a search: any metric of `qdit.eval`, on a few samples drawn for it.

Q-DiT scores candidates by FID (by FVD for video). All candidates get the same noise and labels, which are neither those
that the run is evaluated on nor those of the calibration. A paired metric compares with full-precision samples, which
are drawn once; a distribution metric with reference statistics, which must be there before anything is computed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from qdit.checked import Checked, Samples
from qdit.eval.base import Metric
from qdit.model.base import DiffusionModel
from qdit.quantized import Quantized
from qdit.seeding import SEARCH
from qdit.setting import Setting


@dataclass(frozen=True)
class Score:
    """A metric's value with its standard error over samples; None where a candidate's samples diverged."""

    value: float | None
    stderr: float | None = None


@dataclass(frozen=True, kw_only=True)
class Objective(Checked):
    """A metric on a few samples.

    Args:
        name: what logs and curves call it.
        metric: from `qdit.eval`; its direction says which of two candidates is better.
        num_samples: samples per candidate.
        batch_size: samples drawn at a time.
        seed: of the candidates' noise and labels, added to the run's.

    Raises:
        UserError: a number is below 1.
    """

    name: str
    metric: Metric
    num_samples: Samples
    batch_size: Samples
    seed: int = 0

    def goodness(self, score: Score) -> float:
        """A number that is higher for a better score."""
        if score.value is None:
            return float("-inf")
        return score.value if self.metric.higher_is_better else -score.value


@dataclass(eq=False)  # metrics remember what they found of a set, which is itself and no other
class Drawn:
    """Samples in memory; see `qdit.eval.base.Samples`."""

    chunks: list[Tensor]
    decode: Callable[[Tensor], Tensor]
    extract: Callable[[str], Callable[[Tensor], dict[str, Tensor]]]
    n: int = field(init=False)
    _features: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.n = sum(map(len, self.chunks))

    def latents(self) -> Tensor:
        """Final latents, float32 [n, C, h, w]."""
        return torch.cat(self.chunks)

    def images(self) -> Iterator[Tensor]:
        """Decoded images, uint8 [k, 3, H, W], chunk by chunk."""
        return map(self.decode, self.chunks)

    def features(self, extractor: str) -> dict[str, Tensor]:
        """Features of every sample by name, each float32 [n, D]."""
        if extractor not in self._features:
            parts = [self.extract(extractor)(images) for images in self.images()]
            self._features[extractor] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return self._features[extractor]


class Judge:
    """Scores quantized models under an objective.

    Args:
        objective: the metric, and the samples that it is taken on.
        model: in full precision.
        setting: the run around.
    """

    def __init__(self, objective: Objective, model: DiffusionModel, setting: Setting) -> None:
        self.objective, self.model, self.setting = objective, model, setting
        seed = setting.seed + objective.seed
        self.indices = torch.arange(SEARCH, SEARCH + objective.num_samples).split(objective.batch_size)
        self.labels = [setting.dataset.labels(chunk.tolist(), seed) for chunk in self.indices]
        self.seed = seed

    def draw(self) -> Drawn:
        """The samples of the model as it is now."""
        sampler, chunks = self.setting.sampler, []
        for chunk, labels in zip(self.indices, self.labels, strict=True):
            chunks.append(sampler.sample(self.model, chunk.tolist(), labels, self.seed).float().cpu())
        return Drawn(chunks, self.model.decode, self._extractor)

    @cached_property
    def full_precision(self) -> Drawn:
        """The samples of full precision, drawn once."""
        return self.draw()

    def __call__(self, quantized: Quantized) -> Score:
        """The score of a quantized model, which is installed meanwhile."""
        metric = self.objective.metric
        reference = self.full_precision if metric.paired else None
        with quantized.installed(self.model):
            samples = self.draw()
        if not samples.latents().isfinite().all():
            return Score(None)
        result = metric.compute(samples, reference or samples, self.setting.prepared.reference_of(metric))
        return Score(result.value, result.stderr)

    def _extractor(self, name: str) -> Callable[[Tensor], dict[str, Tensor]]:
        extractor = self.setting.prepared.extractors[name]
        extractor.load(str(self.model.device))
        return extractor
