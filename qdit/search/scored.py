"""Searches that score candidates by sampling from them: one loop, for which each search proposes populations.

A search is a deterministic function of its candidates' scores. They are kept on disk, one line of JSON each, before the
next candidate starts. After a kill the same command reads the scores back instead of computing them, repeats the same
decisions, and goes on after the last line. A line that was cut off by the kill is dropped.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal

import numpy as np

from qdit.errors import UserError
from qdit.model.base import Site
from qdit.quantized import Allocation
from qdit.recipes import Recipe
from qdit.rounding import Nearest
from qdit.search.base import Bench, GroupSearch
from qdit.search.budget import Costs
from qdit.search.objective import Judge, Objective, Score
from qdit.search.progress import Progress
from qdit.search.space import Choice, Space
from qdit.search.variants import Variants
from qdit.storage.digest import digest
from qdit.storage.journal import Entry, Journal
from qdit.storage.shelf import Place

FORMAT = 1  # of the file of scores
NAME = "search"


@dataclass(frozen=True, kw_only=True)
class ScoredSearch(GroupSearch):
    """A search over sampled candidates; the best one that was ever scored is deployed.

    Args:
        group_sizes: among which a gene chooses; those that do not divide its channels are not offered to it.
        objective: scores a candidate.
        rounding: of the candidates' weights: `deployed` is the recipe's own, so that a score is the deployed model's;
            `nearest` screens with weights rounded to nearest, which need no data (as Q-DiT's release does).
        seed: of the search's own random stream, together with the run's; nothing else draws from it.
    """

    group_sizes: list[int]
    objective: Objective
    rounding: Literal["deployed", "nearest"] = "deployed"
    seed: int = 0

    @property
    def measured(self) -> Objective:
        """The objective."""
        return self.objective

    @property
    @abstractmethod
    def total(self) -> int:
        """The most candidates that will be scored."""

    @abstractmethod
    def propose(
        self, space: Space, table: Costs, rng: np.random.Generator, found: Mapping[Choice, float]
    ) -> Iterator[list[Choice]]:
        """Populations of legal candidates that were not proposed before.

        Args:
            space: the genes.
            table: what choices cost, and may cost.
            rng: the search's own stream.
            found: goodness of all candidates of earlier populations, by the time the next one is asked for.
        """

    def space(self, recipe: Recipe, sites: Sequence[Site]) -> Space:
        """See `GroupSearch`."""
        return Space.of(recipe, sites, self.group_sizes)

    def summary(self, recipe: Recipe, sites: Sequence[Site]) -> str:
        """See `Search`."""
        effort = (
            f"up to {self.total} candidates are scored by {self.objective.name} of {self.objective.num_samples} samples"
        )
        return f"{super().summary(recipe, sites)}; {effort}"

    def allocate(self, bench: Bench) -> Allocation:
        """The best of all proposed candidates.

        Raises:
            UserError: the samples of every candidate diverged, or the file of scores cannot be used.
        """
        scorer = Scorer(self, bench)
        found: dict[Choice, float] = {}
        rng = np.random.default_rng([self.seed, bench.setting.seed])
        progress = Progress(self.objective, self.total, bench.setting.tracker)
        with progress:
            for population in self.propose(bench.space, bench.table, rng, found):
                for choice in population:
                    score, seconds = scorer(choice)
                    found[choice] = self.objective.goodness(score)
                    progress.candidate(score, seconds)
                progress.generation()
        best = max(found, key=found.__getitem__)  # the first of equals
        score = scorer.scores.by_choice[best]
        if score.value is None:
            raise UserError(
                f"search: the samples of all {len(found)} candidates diverged; try more bits or a narrower scope"
            )
        details = {
            "objective": self.objective.name,
            "value": score.value,
            "stderr": score.stderr,
            "candidates": len(found),
        }
        return Allocation(choice=best, details=details, curves=progress.curves())


class Scorer:
    """Scores candidates of a search; those on disk are not computed again."""

    def __init__(self, search: ScoredSearch, bench: Bench) -> None:
        objective, setting = search.objective, bench.setting
        self.space, self.variants = bench.space, bench.variants
        if search.rounding == "nearest":
            self.variants = Variants(bench.model, replace(bench.recipe, rounding=Nearest()), bench.collect)
        self.judge = Judge(objective, bench.model, setting)
        genes = [[gene.name, gene.sizes] for gene in bench.space.genes]
        science = (objective.name, objective.num_samples, objective.batch_size, objective.seed, setting.seed)
        about = {"genes": genes, "layer": repr(bench.space.layer), "rounding": search.rounding, "objective": science}
        self.scores = Scores(setting.folder, {"objective": objective.name, "search": digest(about)})

    def __call__(self, choice: Choice) -> tuple[Score, float | None]:
        """The score of a choice, and the seconds that it took; None if it was known."""
        if choice in self.scores.by_choice:
            return self.scores.by_choice[choice], None
        quantized = self.variants.assembled(self.space, choice)
        start = perf_counter()
        score = self.judge(quantized)
        seconds = perf_counter() - start
        self.scores.add(choice, score, seconds)
        return score, seconds


class Scores:
    """Scores by choice, and the file that they are appended to.

    Args:
        place: the folder of the file; None keeps nothing.
        identity: plain values that a score depends on; a file with another identity is refused.

    Raises:
        UserError: the file is damaged, of another search, or cannot be written.
    """

    def __init__(self, place: Place | None, identity: dict[str, Any]) -> None:
        self.by_choice = dict[Choice, Score]()
        self.journal = Journal(place, NAME, {"ledger": FORMAT} | identity, _whole)
        for line in self.journal.entries:
            self.by_choice[tuple(line["groups"])] = Score(line["value"], line["stderr"])

    def add(self, choice: Choice, score: Score, seconds: float) -> None:
        """Keep a score, on disk when this returns."""
        self.by_choice[choice] = score
        entry = {"groups": list(choice), "value": score.value, "stderr": score.stderr}
        self.journal.append(entry | {"seconds": round(seconds, 3)})


def _whole(entry: Entry) -> bool:
    return bool(entry["groups"]) and {"value", "stderr"} <= entry.keys()
