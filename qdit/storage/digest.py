"""Digests of values, files and folders. Imports no torch."""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

blake2b = partial(hashlib.blake2b, digest_size=16)
"""What checkpoints and tensors are known by: 32 hex digits."""


def digest(value: Any, length: int = 8, hasher: Callable[[bytes], Any] = hashlib.sha256) -> str:
    """Hex digits of any JSON value."""
    return hasher(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


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
    """Hex digest of a file, read again only when its size or time has changed; `file_digest` is not kept."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256(path: Path, _size: int, _modified: int) -> str:
    return file_digest(path, hashlib.sha256)


def file_digest(path: Path, hasher: Callable[[], Any] = blake2b) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, hasher).hexdigest()
