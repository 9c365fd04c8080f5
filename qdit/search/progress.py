"""Progress of a search: a bar over candidates, a line and a tracker entry per generation, curves for the record."""

import logging
from statistics import fmean, median
from typing import Any, Self

from qdit.search.objective import Objective, Score
from qdit.storage.progress import progress
from qdit.tracking import Tracker

log = logging.getLogger("qdit")


class Progress:
    """Counts candidates and generations; a context, so that the bar is closed whatever happens.

    Args:
        objective: names the score and says which way is better.
        total: the most candidates that may come.
        tracker: gets best, mean and median of each generation.
    """

    def __init__(self, objective: Objective, total: int, tracker: Tracker) -> None:
        self.objective, self.total, self.tracker = objective, total, tracker
        self.population: list[Score] = []
        self.best: Score = Score(None)
        self.history: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.done = 0

    def __enter__(self) -> Self:
        self.bar = progress(total=self.total, desc="search", unit="candidate")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def candidate(self, score: Score, seconds: float | None) -> None:
        """Note a score; `seconds` are None for one that was read back."""
        self.population.append(score)
        self.done += 1
        if seconds is not None:
            self.seconds.append(seconds)
        if self.objective.goodness(score) > self.objective.goodness(self.best):
            self.best = score
        self.bar.update()

    def generation(self) -> None:
        """Report the population, and begin another one; a generation without a finite score reports nothing."""
        values = sorted(s.value for s in self.population if s.value is not None)
        number, size = len(self.history), len(self.population)
        self.population = []
        if not values or self.best.value is None:
            log.warning("search: generation %d: the samples of all %d candidates diverged", number, size)
            self.history.append({})
            return
        best = values[-1] if self.objective.metric.higher_is_better else values[0]
        entry = {"best": best, "mean": fmean(values), "median": median(values), "best_so_far": self.best.value}
        self.history.append(entry)
        self.tracker.log(entry, number, "search")
        text = ", ".join(f"{name.replace('_', ' ')} {value:.5g}" for name, value in entry.items())
        log.info("search: generation %d: %s %s; %d candidates%s", number, self.objective.name, text, size, self._pace())

    def _pace(self) -> str:
        """Rate and time left, of what this process scored."""
        if not self.seconds:
            return " (read back)"
        pace = fmean(self.seconds)
        return f", {pace:.2g} s each, {pace * (self.total - self.done) / 60:.1f} min left"

    def curves(self) -> dict[str, dict[str, Any]]:
        """Best so far, and the median of each generation, over generations."""
        whole = {n: entry for n, entry in enumerate(self.history) if entry}
        return {
            f"search_{key}": {
                "x": list(whole),
                "y": [entry[key] for entry in whole.values()],
                "stderr": None,
                "xlabel": "generation",
                "ylabel": f"{self.objective.name}, {key.replace('_', ' ')}",
            }
            for key in ("best_so_far", "median")
        }
