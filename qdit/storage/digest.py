"""Digests of values, files and folders. Imports no torch."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """Eight hex digits of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def content_digest(files: Iterable[Path], root: Path) -> str:
    """Eight hex digits of the files' names below `root` and contents; hashed once a process while they stay."""
    return _content_digest(root, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _content_digest(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    hasher = hashlib.blake2b(digest_size=4)
    for file, _, _ in files:
        hasher.update(f"{file.relative_to(root).as_posix()}\n".encode())
        with file.open("rb") as stream:
            hasher.update(hashlib.file_digest(stream, "blake2b").digest())
    return hasher.hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file, read again only when its size or time has changed."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
