"""Random allocation: the best of as many legal candidates as another search would score. The baseline of a search."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qdit.checked import Checked, Count
from qdit.search.budget import Costs
from qdit.search.evolution import Breeding
from qdit.search.scored import ScoredSearch
from qdit.search.space import Choice, Space


@dataclass(frozen=True, kw_only=True)
class RandomSearch(ScoredSearch, Checked):
    """Score random choices.

    Args:
        candidates: how many are scored.
        report_every: candidates between two lines of the log.

    Raises:
        UserError: a number is below 1.
    """

    candidates: Count = 550
    report_every: Count = 50

    @property
    def total(self) -> int:
        """See `ScoredSearch`."""
        return self.candidates

    def propose(
        self, space: Space, table: Costs, rng: np.random.Generator, found: Mapping[Choice, float]
    ) -> Iterator[list[Choice]]:
        """See `ScoredSearch`."""
        breed = Breeding(table, rng)
        for first in range(0, self.candidates, self.report_every):
            population = breed.fresh(breed.random, min(self.report_every, self.candidates - first))
            if not population:
                return
            yield population
