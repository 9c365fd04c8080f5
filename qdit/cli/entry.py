"""What the console commands beside `qdit` have in common: how they end, and the device that they compute on.

Imports no torch, so that a command's help and its mistakes come at once.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from qdit.errors import UserError

if TYPE_CHECKING:
    import torch


def carried_out(program: str, work: Callable[[], int | None]) -> int:
    """Do a command's work; its exit code, which is 2 after a mistake that the user can mend, said in one message.

    Args:
        program: the command's name, which begins the message.
        work: gives an exit code, or None for 0.
    """
    try:
        return work() or 0
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2


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
