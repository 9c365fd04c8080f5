"""Read text, JSON and YAML that others may have written; whatever is wrong with a file is reported in one sentence.

A file may be missing, a folder or a pipe, too large, not text, cut off, nested without end, or hold values that qdit
never writes: a key twice, a number that is not finite. Each is a `UserError` with the file's name, what was found, and
what to do. `qdit.storage.arrays` reads arrays and images in the same way. Imports no torch.
"""

import json
import stat
from collections.abc import Iterator
from math import isfinite, isinf
from pathlib import Path
from typing import Any

import yaml

from qdit.errors import UserError

LARGEST = 256 * 2**20
"""Bytes of text that are read; the largest records and checkpoints of qdit have a few million."""
DEEPEST = 100
"""Levels of nesting; records and checkpoints of qdit have up to thirty."""
_LONGEST = 2**64  # whole numbers are below it: seeds, sizes and counts are


class Unreadable(UserError):
    """A file that cannot be used. `reason` is what was found, without the file's name."""

    def __init__(self, where: Path | str, reason: str, advice: str) -> None:
        self.reason = reason
        super().__init__(f"{where} {reason}; {advice}")


def size_of(path: Path, advice: str) -> int:
    """Bytes of a regular file, of which links are followed; anything else would block, or has no end.

    Raises:
        Unreadable: it is missing, or no file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise Unreadable(path, "does not exist", advice) from None
    except (OSError, ValueError) as error:  # ValueError: a name with NUL in it
        raise Unreadable(path, f"cannot be read ({_why(error)})", advice) from error
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable(path, "is a folder" if stat.S_ISDIR(status.st_mode) else "is no regular file", advice)
    return status.st_size


def read_bytes(path: Path, advice: str, largest: int = LARGEST) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        advice: what the user may do, for the message.
        largest: size in bytes that is allowed.

    Raises:
        Unreadable: it is missing, no file, larger than that, or not to be read by this user.
    """
    if (size := size_of(path, advice)) > largest:
        raise Unreadable(path, f"is damaged: it has {size:,} bytes, and {largest:,} are allowed", advice)
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(path, f"cannot be read ({_why(error)})", advice) from error


def read_text(path: Path, advice: str, largest: int = LARGEST) -> str:
    """The content of a text file, which is UTF-8.

    Raises:
        Unreadable: as `read_bytes`, or it is no text.
    """
    try:
        return read_bytes(path, advice, largest).decode()
    except UnicodeDecodeError as error:
        raise Unreadable(path, f"is damaged: it is no text (UTF-8), from byte {error.start} on", advice) from error


def read_json(path: Path, advice: str, infinite: bool = False) -> dict[str, Any]:
    """The JSON object in a file; `infinite` numbers may be allowed, as diffusers writes them into schedulers' configs.

    Raises:
        Unreadable: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, advice), path, advice, infinite)


def parse_json(text: str, where: Path | str, advice: str, infinite: bool = False) -> dict[str, Any]:
    """The JSON object that a text is: strictly JSON, no key twice, every number finite, `DEEPEST` levels at most.

    Raises:
        Unreadable: it is none.
    """
    try:
        constant = float if infinite else _refuse_constant
        value = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=constant)
        _check(value, infinite)
    except (ValueError, RecursionError) as error:
        raise Unreadable(where, f"is damaged: no valid JSON ({_why(error)})", advice) from error
    return _mapping(value, where, advice)


def read_yaml(path: Path, advice: str) -> dict[str, Any]:
    """The mapping in a YAML file of plain values: no tags, no aliases, no key twice, and limits as for JSON.

    Raises:
        Unreadable: as `read_text`, or it is none.
    """
    text = read_text(path, advice)
    try:
        value = yaml.load(text, _PlainLoader)
        _check(value)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise Unreadable(path, f"is damaged: no valid YAML ({_why(error)})", advice) from error
    return _mapping(value, path, advice)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return made


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the number {name} is not finite")


def _check(value: Any, infinite: bool = False) -> None:
    """Refuse what is nested too deeply, and numbers and text that could not be written again.

    Raises:
        ValueError: there is such a thing.
    """
    for number, level in enumerate(levels(value)):
        if number == DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        for each in level:
            _check_plain(each, infinite)


def levels(value: Any) -> Iterator[list[Any]]:
    """A value, then what is in it, then what is in that …, with keys; a recursion would end at Python's limit."""
    level = [value]
    while level:
        yield level
        within = [[*each, *each.values()] if isinstance(each, dict) else each for each in level]
        level = [inner for each in within if isinstance(each, list) for inner in each]


def _check_plain(value: Any, infinite: bool) -> None:
    """Refuse all but a mapping, a list, text, a number, true, false, and null."""
    if isinstance(value, str):
        value.encode()  # halves of a pair of surrogates cannot be
    elif isinstance(value, float) and not (isfinite(value) or (infinite and isinf(value))):
        raise ValueError(f"the number {value} is not finite")
    elif isinstance(value, int) and abs(value) >= _LONGEST:
        raise ValueError("a whole number has more than 64 bits")
    elif not isinstance(value, dict | list | int | float | None):
        raise ValueError(f"a value is a {type(value).__name__}")


def _mapping(value: Any, where: Path | str, advice: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        names = {list: "a list", str: "text", type(None): "empty"}
        found = names.get(type(value), "a single value")
        raise Unreadable(where, f"is damaged: it is {found}, where names with values are expected", advice)
    return value


def _why(error: Exception) -> str:
    """What an exception says, in a line."""
    if isinstance(error, RecursionError):
        return f"it is nested more than {DEEPEST} levels deep"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


class _PlainLoader(yaml.SafeLoader):
    """YAML without references, which can stand for more than memory holds, and without a key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "references (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        made = super().construct_mapping(node, deep=deep)
        if len(made) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return made
