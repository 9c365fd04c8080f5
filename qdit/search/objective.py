"""The objective of a search: any metric of `qdit.eval`, on a few samples drawn for it.

Q-DiT scores candidates by FID (by FVD for video). All candidates get the same noise and labels. The noise is
neither that of the evaluation nor that of the calibration; nor are the drawn labels of a model of classes. Prompts are
those of calibration where they have a file, and else may be the evaluated ones. A paired metric compares with
full-precision samples, which are drawn once; a distribution metric with reference statistics, which must be there
before anything is computed.
"""

import logging
from dataclasses import dataclass
from functools import cached_property

from qdit.checked import Checked, Samples
from qdit.errors import UserError
from qdit.eval.base import Metric
from qdit.eval.extractor import loading
from qdit.eval.samples import Drawn
from qdit.model.base import DiffusionModel
from qdit.quantized import Quantized
from qdit.sampler.draw import draw
from qdit.seeding import SEARCH
from qdit.setting import Setting

log = logging.getLogger("qdit")


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
        UserError: a number is below 1, or neither more nor less of the metric is better.
    """

    name: str
    metric: Metric
    num_samples: Samples
    batch_size: Samples
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.metric, "higher_is_better", True) is None:
            raise UserError(
                f"search.objective={self.name}: neither more nor less of its metric is better, so that it ranks no "
                "candidates; choose a metric with a direction, such as sqnr"
            )

    def goodness(self, score: Score) -> float:
        """A number that is higher for a better score."""
        if score.value is None:
            return float("-inf")
        return score.value if self.metric.higher_is_better else -score.value


def warn_of_shared(setting: Setting) -> None:
    """Log that what a search is about to draw may be what the run is evaluated on."""
    if (shared := setting.dataset.shared_with_evaluation()) is not None:
        log.warning("search: %s", shared)


class Judge:
    """Scores quantized models under an objective.

    Args:
        objective: the metric, and the samples that it is taken on.
        model: in full precision.
        setting: the run around.
    """

    def __init__(self, objective: Objective, model: DiffusionModel, setting: Setting) -> None:
        self.objective, self.model, self.setting = objective, model, setting
        self.seed = setting.seed + objective.seed
        warn_of_shared(setting)

    def draw(self) -> Drawn:
        """The samples of the model as it is now."""
        wanted = self.objective
        return draw(
            self.model,
            self.setting.sampler,
            self.setting.dataset,
            count=wanted.num_samples,
            batch_size=wanted.batch_size,
            seed=self.seed,
            first=SEARCH,
            extract=loading(self.setting.prepared.extractors, self.model.device),
        )

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
