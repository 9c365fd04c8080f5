"""The captions of samples that have names, for `qdit-score`: by name where a file has ids, else in the names' order."""

import re
from collections.abc import Sequence
from pathlib import Path

from qdit.errors import UserError
from qdit.storage.names import counted

_NUMBER = re.compile(r"-[0-9]+$")
_WAYS = "give one a line for each sample, in the order of their names, or JSONL or CSV with ids"


def captions_of(file: Path, names: Sequence[str]) -> list[str]:
    """The caption of each sample.

    Args:
        file: `.txt`, or `.jsonl` and `.csv` with or without ids. An id is a sample's name, or the name before -0, -1 …
        names: of the samples, in order.

    Raises:
        UserError: the file cannot be read, or does not fit the samples.
    """
    from qdit.dataset.prompts import read_rows

    rows = read_rows(file, "--prompts")
    if any(name for name, _ in rows):
        return _by_name(file, rows, names)
    if len(rows) != len(names):
        raise UserError(f"--prompts {file} has {len(rows)} captions without ids for {len(names)} samples; {_WAYS}")
    if (by_number := sorted(names, key=counted)) != list(names):
        one, other = next(pair for pair in zip(names, by_number, strict=True) if pair[0] != pair[1])
        raise UserError(
            f"--prompts {file} has no ids, and the order of the names is in doubt: {one} stands before {other} by its "
            "letters and behind it by its number; write numbers with zeros before them, or give JSONL or CSV with ids"
        )
    return [text for _, text in rows]


def _by_name(file: Path, rows: Sequence[tuple[str, str]], names: Sequence[str]) -> list[str]:
    known: dict[str, str] = {}
    for name, text in rows:
        if not name:
            raise UserError(
                f"--prompts {file} has ids, and none for the caption {text[:60]!r}; give all an id, or none"
            )
        if known.setdefault(name, text) != text:
            raise UserError(f"--prompts {file} has two captions for {name}; take one away")
    found = [known.get(name, known.get(_NUMBER.sub("", name))) for name in names]
    if lost := [name for name, text in zip(names, found, strict=True) if text is None]:
        raise UserError(
            f"--prompts {file} has {len(rows)} captions and none for {lost[0]} ({len(lost)} of {len(names)} samples); "
            f"{_WAYS}"
        )
    return [text for text in found if text is not None]
