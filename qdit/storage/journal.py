"""A journal of results, one line of JSON each, on disk before the next one is computed; cut-off lines are dropped.

Each line ends with a checksum of itself, and the first says what the entries belong to and what made them
(`qdit.storage.shelf`).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdit.errors import UserError
from qdit.storage.atomic import sync_folder
from qdit.storage.seal import CHECK, Broken, sealed, verify
from qdit.storage.shelf import Place, Shelf, other_maker, stamp_text

Entry = dict[str, Any]
OF, MADE = "of", "made"
_LENGTH = 8  # hex digits of a line's check


class Journal:
    """Entries and the file that they are appended to; the first line says whose they are.

    Entries that another machine, library or execution made are not used: a journal begins anew.

    Args:
        place: the folder; None keeps nothing.
        name: of the file.
        header: the first line; a file with another one is refused.
        whole: whether an entry has all it must have; it may also raise KeyError or TypeError.

    Raises:
        UserError: the file is damaged, of another search, or cannot be written.
    """

    def __init__(self, place: Place | None, name: str, header: Entry, whole: Callable[[Entry], Any]) -> None:
        self.path: Path | None = None
        self.entries: list[Entry] = []
        self.first: Entry = header
        if place is None:
            return
        shelf = Shelf.of(place)
        made = None if shelf.made is None else stamp_text(shelf.made)
        self.path = path = shelf.path(name, ".jsonl", _maker)
        lines = self._lines(path, whole)
        if lines and made is not None and (maker := lines[0].get(MADE)) not in (None, made):
            other_maker(path, str(maker), made)
            path.unlink()
            lines = []
        about = {OF: json.loads(json.dumps(shelf.identity)), MADE: made}
        self.first = header | about
        if not lines:
            self.append(self.first)
        elif {**about, **lines[0], MADE: made} != header | about:  # an earlier qdit left `about` out
            raise UserError(f"{path} belongs to another search; move it away, or use overwrite=true to search again")
        self.entries = lines[1:]

    def append(self, entry: Entry) -> None:
        """Keep an entry, on disk when this returns; a file that is gone (overwrite=true elsewhere) begins anew."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists()
            lines = [self.first, entry] if new and entry is not self.first else [entry]
            with self.path.open("ab") as stream:
                for line in lines:
                    stream.write(json.dumps(sealed(line, CHECK, _LENGTH), allow_nan=False).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            if new:
                sync_folder(self.path.parent)
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
                checked = [verify(entry, CHECK, _LENGTH) for entry in entries]
                if checked and checked[0] and not all(checked):  # the first line of an earlier qdit has no check
                    raise Broken("a line has no check")
                return [{key: value for key, value in entry.items() if key != CHECK} for entry in entries]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise UserError(f"{path} is damaged; move it away, or use overwrite=true to search again")


def _maker(path: Path) -> str | None:
    """What made the entries of a file; None where it does not say."""
    try:
        with path.open("rb") as stream:
            return str(json.loads(stream.readline())[MADE])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
