"""Every evaluated candidate, a line of JSON each, on disk before the next one starts.

A search is a deterministic function of its candidates' scores. After a kill the same command reads the scores back
instead of computing them, walks the same way and goes on behind the last line. A line torn by the kill is dropped.
"""

import json
import os
from pathlib import Path
from typing import Any

from qdit.errors import UserError
from qdit.search.objective import Score
from qdit.search.space import Choice

FORMAT = 1


class Ledger:
    """Scores by choice, and the file that they are appended to.

    Args:
        path: of the file; None keeps nothing.
        identity: plain values that a score depends on; a file of another identity is refused.

    Raises:
        UserError: the file is damaged, of another search, or cannot be written.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path, self.scores = path, dict[Choice, Score]()
        header = {"ledger": FORMAT} | identity
        if path is None:
            return
        lines = self._lines(path)
        if not lines:
            self._append(header)
        elif lines[0] != header:
            raise UserError(f"{path} belongs to another search; move it away, or use overwrite=true to search again")
        for line in lines[1:]:
            self.scores[tuple(line["groups"])] = Score(line["value"], line["stderr"])

    def add(self, choice: Choice, score: Score, seconds: float) -> None:
        """Keep a score, on disk when this returns."""
        self.scores[choice] = score
        if self.path is not None:
            entry = {"groups": list(choice), "value": score.value, "stderr": score.stderr}
            self._append(entry | {"seconds": round(seconds, 3)})

    def _append(self, entry: dict[str, Any]) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                stream.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; choose another folder or make room"
            ) from error

    def _lines(self, path: Path) -> list[dict[str, Any]]:
        """The entries of the file; what a kill left of a last line is cut off."""
        if not path.exists():
            return []
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(path, len(whole))
        try:
            entries = [json.loads(line) for line in whole.splitlines()]
            if all(
                "ledger" in e if n == 0 else e["groups"] and {"value", "stderr"} <= e.keys()
                for n, e in enumerate(entries)
            ):
                return entries
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UserError(f"{path} is damaged; move it away, or use overwrite=true to search again")
