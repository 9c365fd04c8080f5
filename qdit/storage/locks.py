"""File locks: what several processes share (joblib's workers, two terminals) is made by one while the others wait.

Locks are the operating system's (flock): they end with the process that holds them, however it ends. The files stay on
the disk, empty. Where a file system has no locks, work goes on without them after one warning: every file is written
whole, so that the worst is work done twice. Imports no torch.
"""

import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from qdit.errors import UserError

log = logging.getLogger("qdit")
_held = threading.local()  # .files: the lock files that this thread holds
_unlocked: set[int] = set()  # devices without locks, of which the user was told


class Busy(UserError):
    """Another process works on the same thing."""


@contextmanager
def exclusive(file: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file, for as long as the block lasts.

    Whoever holds it may wait for it again at once: what makes a chunk of features asks for the chunk of latents.

    Args:
        file: the lock; its folder is made.
        busy: None waits for another process that holds it; a text is the error that is raised instead.

    Raises:
        Busy: another process holds it.
        UserError: the folder cannot be written, or something else than a lock stands in the lock's place.
    """
    held: set[Path] = _held.__dict__.setdefault("files", set())
    if busy is None and file in held:
        yield
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _opened(file)
    except OSError as error:
        raise UserError(f"cannot write {file.parent}: {error.strerror}; choose another folder") from error
    try:
        _take(descriptor, file, busy)
        held.add(file)
        try:
            yield
        finally:
            held.discard(file)
    finally:
        os.close(descriptor)  # which gives the lock back


def _opened(file: Path) -> int:
    """A descriptor of a lock file, which is made if it is missing; links are not followed and nothing is emptied."""
    if file.is_symlink():
        raise UserError(f"{file} is a link, and a lock has to be a file; remove it")
    flags = os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(file, os.O_RDWR | flags, 0o666)
    except PermissionError:  # another user's, in a shared folder: reading is enough for most file systems
        if not file.exists():
            raise
        descriptor = os.open(file, os.O_RDONLY | flags & ~os.O_CREAT)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{file} is no file, and a lock has to be one; remove it")
    return descriptor


def _take(descriptor: int, file: Path, busy: str | None) -> None:
    """Lock a descriptor, waiting for it if `busy` is None; without a word more where that is known to be impossible."""
    try:
        if lock_descriptor(descriptor, blocking=False):
            return
        if busy is not None:
            raise Busy(busy)
        log.info("%s: waiting for another qdit process that makes it", file.parent)
        lock_descriptor(descriptor)
    except OSError as error:
        device = os.fstat(descriptor).st_dev
        if device not in _unlocked:
            _unlocked.add(device)
            log.warning(
                "%s: its file system has no locks (%s); going on without, so that processes that run at the same time "
                "may do work twice",
                file.parent,
                error.strerror,
            )


def once(path: Path, make: Callable[[], object]) -> Path:
    """Call `make`, which writes `path`, unless the file exists; of several processes one makes it, the others wait."""
    if not path.exists():
        with exclusive(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                make()
    return path
