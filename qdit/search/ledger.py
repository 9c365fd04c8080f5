"""The scores of all evaluated candidates, one line of JSON each, on disk before the next one starts.

A search is a deterministic function of its candidates' scores. After a kill the same command reads the scores back
instead of computing them, repeats the same decisions, and goes on after the last line. A line that was cut off by the
kill is dropped.
"""

from typing import Any

from qdit.search.objective import Score
from qdit.search.space import Choice
from qdit.storage.journal import Entry, Journal
from qdit.storage.shelf import Place

FORMAT = 1
NAME = "search"


class Ledger:
    """Scores by choice, and the file that they are appended to.

    Args:
        place: the folder of the file; None keeps nothing.
        identity: plain values that a score depends on; a file with another identity is refused.

    Raises:
        UserError: the file is damaged, of another search, or cannot be written.
    """

    def __init__(self, place: Place | None, identity: dict[str, Any]) -> None:
        self.scores = dict[Choice, Score]()
        self.journal = Journal(place, NAME, {"ledger": FORMAT} | identity, _whole)
        for line in self.journal.entries:
            self.scores[tuple(line["groups"])] = Score(line["value"], line["stderr"])

    def add(self, choice: Choice, score: Score, seconds: float) -> None:
        """Keep a score, on disk when this returns."""
        self.scores[choice] = score
        entry = {"groups": list(choice), "value": score.value, "stderr": score.stderr}
        self.journal.append(entry | {"seconds": round(seconds, 3)})


def _whole(entry: Entry) -> bool:
    return bool(entry["groups"]) and {"value", "stderr"} <= entry.keys()
