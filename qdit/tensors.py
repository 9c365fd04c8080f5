"""Tensors on disk: safetensors, written atomically; a damaged file is refused by name. No pickle."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from qdit.errors import UserError
from qdit.store import atomic_write


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write tensors by name; returns what was written, contiguous and on the CPU.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    plain = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    atomic_write(path, save(plain))
    return plain


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and the same command makes it again") from error
