"""What the console commands beside `qdit` have in common: how they end, and the device that they compute on.

Imports no torch, so that a command's help and its mistakes come at once.
"""

import io
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from qdit.errors import UserError

if TYPE_CHECKING:
    import torch

CLOSED = 141
"""Exit code of a command whose reader has gone, as in `qdit-ls | head -1`: what a shell calls SIGPIPE."""


def carried_out(program: str, work: Callable[[], int | None]) -> int:
    """Do a command's work; its exit code, which is 2 after a mistake that the user can mend, said in one message.

    Args:
        program: the command's name, which begins the message.
        work: gives an exit code, or None for 0.
    """
    tolerant()
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        if not hushed():
            raise
        return CLOSED


def study_name(word: str) -> str:
    """The study that a word of the command line names, which ends with a / where a shell completed a folder's name."""
    return word.rstrip("/") or word


def tolerant() -> None:
    """From now on a character that the terminal or the file has no code for is printed as ?, in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if stream.errors == "strict" or (stream.errors == "surrogateescape" and stream.encoding.lower() != "utf-8"):
            stream.reconfigure(errors="replace")


def hushed() -> bool:
    """Print no more on the standard output if nobody reads it any longer; else Python complains of it at the end.

    False if a reader is there: the pipe that broke is another one, such as that of a program which was started.
    """
    if not _unread():
        return False
    with suppress(OSError, ValueError):  # a stream that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return True


def _unread() -> bool:
    """Whether the reader of the standard output has gone, as a flush says, or the pipe itself after one that failed."""
    try:
        sys.stdout.flush()
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), 0)  # errors alone
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))
    except BrokenPipeError:
        return True
    except (OSError, ValueError):  # a stream that is no file
        return False


def device_of(name: str) -> "torch.device":
    """The device of a name.

    Raises:
        UserError: there is no such device, or this machine or torch cannot use it.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device
