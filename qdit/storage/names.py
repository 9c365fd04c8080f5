"""Sanitizing text from configs, records and checkpoints that becomes the name of a file or folder, or is printed.

What becomes one part of a path goes through `component`, which refuses bad names, or `fitting`, which changes them as
little as possible. What is printed goes through `visible`. Imports no torch.
"""

import hashlib
import logging
import re
import unicodedata

from qdit.errors import UserError, visible

LONGEST = 200
"""Bytes of a name; file systems take 255, and a run's name is followed by its id."""
NEEDED = "a name of one folder is needed: text without / that does not begin with a dot"


def fits(name: object) -> bool:
    """Whether a value can be one part of a path: not a way out of a folder, not hidden, and all of it can be seen."""
    return (
        isinstance(name, str)
        and bool(name.strip())
        and name == visible(name)
        and not set(name) & {"/", "\\", "\n", "\t"}
        and not name.startswith(".")
        and len(name.encode()) <= LONGEST
    )


def component(name: object, key: str) -> str:
    """A name that is one part of a path, as it is.

    Raises:
        UserError: it is none; `key` is what the user calls it.
    """
    if not isinstance(name, str) or not fits(name):
        raise UserError(f"{key}={name!r}; {problem(name)}")
    return name


def problem(name: object) -> str:
    """What is wrong with a name that does not fit."""
    if isinstance(name, int | float) and not isinstance(name, bool):
        return f"a name is text; write it in quotes, as '{name}'"
    if isinstance(name, str) and len(name) > LONGEST // 4:
        return f"{NEEDED} and has at most {LONGEST} bytes"
    return NEEDED


def fitting(name: str) -> str:
    """A name that is one part of a path: as it is where it fits, else with a digest, so that no two become one."""
    if fits(name):
        return name
    plain = re.sub(r"[^\w@+=.-]+", "_", unicodedata.normalize("NFKD", name), flags=re.ASCII).lstrip(".")[:80]
    return f"{plain}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def counted(name: str) -> list[str | int]:
    """What names are sorted by where numbers in them count as numbers: 2 before 10.

    >>> sorted(["a10", "a2", "a"], key=counted)
    ['a', 'a2', 'a10']
    """
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", name))]


def one_line(text: str) -> str:
    """A text as a table shows it: `visible`, and without lines and tabs of its own."""
    return visible(text).replace("\n", " ").replace("\t", " ")


class Formatter(logging.Formatter):
    """Log lines without control characters, whatever stands in the names that they tell of."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, and make it visible."""
        return visible(super().format(record))
