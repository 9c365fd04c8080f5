"""What several processes share is made by one of them, while the others wait (joblib's workers, two terminals).

Locks are the operating system's (flock): they end with the process that holds them, however it ends. The files stay on
the disk, empty. Imports no torch.
"""

import fcntl
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qdit.errors import UserError

log = logging.getLogger("qdit")
_held = threading.local()  # .files: the lock files that this thread holds


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
        UserError: the folder cannot be written.
    """
    held: set[Path] = _held.__dict__.setdefault("files", set())
    if busy is None and file in held:
        yield
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("w")
    except OSError as error:
        raise UserError(f"cannot write {file.parent}: {error.strerror}; choose another folder") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy is not None:
                raise Busy(busy) from None
            log.info("%s: waiting for another qdit process that makes it", file.parent)
            fcntl.flock(stream, fcntl.LOCK_EX)
        held.add(file)
        try:
            yield
        finally:
            held.discard(file)


def once(path: Path, make: Callable[[], object]) -> Path:
    """Call `make`, which writes `path`, unless the file exists; of several processes one makes it, the others wait."""
    if not path.exists():
        with exclusive(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                make()
    return path
