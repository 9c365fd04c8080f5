"""The context of a run that a search or a correction is given: it may draw samples, use references, and report."""

from dataclasses import dataclass, field

from qdit.dataset.base import Source
from qdit.eval.preflight import Prepared
from qdit.sampler.sampler import Sampler
from qdit.storage.shelf import Place
from qdit.tracking import NoTracker, Tracker


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The run around a search or a correction.

    Args:
        sampler: the run's.
        dataset: the run's.
        seed: the run's.
        prepared: extractors and references of the objective.
        folder: where the ledger is kept; None keeps none.
        tracker: gets what a search and the rounding report.
    """

    sampler: Sampler
    dataset: Source
    seed: int = 0
    prepared: Prepared = field(default_factory=lambda: Prepared({}, {}))
    folder: Place | None = None
    tracker: Tracker = field(default_factory=NoTracker)
