"""Atomic files, whole or not there at all: written under another name, flushed, renamed. Imports no torch."""

import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from qdit.errors import UserError

_PARTIAL = re.compile(r"\..+\.[a-z0-9_]{8,16}\.tmp")  # names of `atomic_write`'s temporary files
ABANDONED = 3600.0  # seconds without a write after which a temporary file is of a process that was killed


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write under a temporary name, flush to disk, rename: a reader sees the old file or the new one, never a half.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as stream:  # not `tempfile`, whose files are for the owner alone: results are shared
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        _sweep(path.parent, partial.stat().st_mtime - ABANDONED)
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder or make room") from error
    finally:
        with suppress(OSError):  # it is renamed, or was never made
            partial.unlink()


def _sweep(folder: Path, before: float) -> None:
    """Delete what killed processes left of files that they wrote: last written `before`, by the folder's own clock."""
    for file in folder.glob(".*.tmp"):
        with suppress(OSError):  # another process sweeps, or it is another user's
            if _PARTIAL.fullmatch(file.name) and file.stat().st_mtime < before:
                file.unlink()


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, too: a rename is kept by it and not by the file."""
    with suppress(OSError):  # some file systems have no such thing
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def writable(folder: Path, key: str) -> None:
    """Make a folder and write in it; `key` is the config's name for it.

    Raises:
        UserError: it cannot be made, or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"qdit")
    except OSError as error:
        raise UserError(f"cannot write {key}={folder}: {error.strerror}; try {key}=<another folder>") from error


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; NaN is refused, because a missing number must be missing."""
    atomic_write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def remove(folder: Path, *patterns: str) -> None:
    """Delete the files of a folder that match."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)
