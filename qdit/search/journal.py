"""What was computed, a line of JSON each, on disk before the next one starts; a line torn by a kill is dropped."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdit.errors import UserError

Entry = dict[str, Any]


class Journal:
    """Entries and the file that they are appended to; the first line says whose they are.

    Args:
        path: of the file; None keeps nothing.
        header: the first line; a file with another one is refused.
        whole: whether an entry has all it must have; it may also raise KeyError or TypeError.

    Raises:
        UserError: the file is damaged, of another search, or cannot be written.
    """

    def __init__(self, path: Path | None, header: Entry, whole: Callable[[Entry], Any]) -> None:
        self.path = path
        self.entries: list[Entry] = []
        if path is None:
            return
        lines = self._lines(path, whole)
        if not lines:
            self.append(header)
        elif lines[0] != header:
            raise UserError(f"{path} belongs to another search; move it away, or use overwrite=true to search again")
        self.entries = lines[1:]

    def append(self, entry: Entry) -> None:
        """Keep an entry, on disk when this returns."""
        if self.path is None:
            return
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

    def _lines(self, path: Path, whole: Callable[[Entry], Any]) -> list[Entry]:
        """The entries of the file; what a kill left of a last line is cut off."""
        if not path.exists():
            return []
        data = path.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        if complete != data:
            os.truncate(path, len(complete))
        try:
            entries = [json.loads(line) for line in complete.splitlines()]
            if all("ledger" in e if n == 0 else whole(e) for n, e in enumerate(entries)):
                return entries
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UserError(f"{path} is damaged; move it away, or use overwrite=true to search again")
