"""Room for large tensors that are needed for a while: in memory, and on disk once a budget of memory is used up.

A tensor on disk is a memory map of a file without a name: the operating system gives its room back when the tensor is
let go, and however the process ends, a kill included. There is nothing to sweep, and nobody else can open it. Values
are the same in both places; the system keeps in memory as much of a file as there is room for.
"""

import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from qdit.errors import UserError

BUDGET = 2**33
"""Bytes kept in memory, 8 GiB: half of a machine that has room for a pipeline's T5 (9 GiB) at all. The activations of
128 points between two blocks, in float32, are 0.14 GiB in DiT-XL/2, 2.2 in PixArt at 1024 px, and 7.2 in Latte."""


class Scratch:
    """Where tensors are made that may be large.

    Args:
        folder: of the files, which must lie on a disk; None takes the system's folder for temporary files (TMPDIR).
        budget: bytes of the tensors that are kept in memory at a time; None: `BUDGET`.
    """

    def __init__(self, folder: Path | None = None, budget: int | None = None) -> None:
        self.folder = folder or Path(tempfile.gettempdir())
        self.left = BUDGET if budget is None else budget

    def empty(self, shape: Sequence[int], dtype: torch.dtype, order: Sequence[int] | None = None) -> Tensor:
        """A tensor on the CPU whose values are not set.

        Args:
            shape: of the tensor.
            dtype: of the tensor.
            order: its dimensions in the order in which they lie in memory, the slowest first; None: as they are.

        Raises:
            UserError: there is no room on the disk.
        """
        order = range(len(shape)) if order is None else order
        size = prod(shape) * dtype.itemsize
        if size > self.left:
            flat = torch.frombuffer(_mapped(self.folder, size), dtype=dtype)
            places = sorted(range(len(shape)), key=list(order).__getitem__)
            return flat.view([shape[d] for d in order]).permute(places)
        made = torch.empty_permuted(tuple(shape), tuple(order), dtype=dtype)
        self.left -= size
        weakref.finalize(made, self._freed, size).atexit = False
        return made

    def _freed(self, size: int) -> None:
        self.left += size


def _mapped(folder: Path, size: int) -> mmap.mmap:
    """So many bytes of disk, without a name; their room is taken now, for a full disk would kill the process later."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < size:
            raise OSError(0, f"{free / 2**30:.1f} GiB are free")
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                os.truncate(file.fileno(), size)
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise UserError(
            f"cannot keep {size / 2**30:.1f} GiB of activations in {folder}: {error.strerror}; make room, choose "
            "another cache_dir, or take fewer calibration points (calibration.num_samples)"
        ) from error
