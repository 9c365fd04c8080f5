"""Tensors on disk: safetensors, written atomically, with a digest and metadata on what they belong to. No pickle.

A damaged or foreign file is refused by name. Files of earlier versions of qdit, which have no digest, are read.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from qdit.errors import UserError
from qdit.storage.atomic import atomic_write
from qdit.storage.digest import blake2b
from qdit.storage.seal import Broken, check_tensors, seal_tensors


class Damaged(UserError):
    """A file of tensors that cannot be used; `reason` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{path} {reason}; delete it, and the same command makes it again")


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest of names, shapes, dtypes and bytes."""
    hasher = blake2b()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Write tensors by name, with their digest; returns what was written, contiguous and on the CPU.

    Args:
        path: of the file.
        tensors: in the order in which they will be read.
        about: the file's metadata: what it is of (`qdit.storage.shelf`).

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    plain = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    atomic_write(path, seal_tensors(save(plain), plain, about or {}))
    return plain


def save_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and nothing else, for a file whose digest stands elsewhere.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    atomic_write(path, save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, in the order in which they were saved.

    Raises:
        Damaged: the file's digest differs, it is no such file, or it cannot be read.
    """
    return load_with_about(path)[0]


def load_with_about(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `load_tensors` reads, and the file's metadata; empty where the file is unverified.

    Raises:
        Damaged: as `load_tensors`.
    """
    try:
        order, about = check_tensors(path)
        tensors = load_file(path)
        return {name: tensors[name] for name in order} if about else tensors, about
    except (Broken, SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(path, f"is damaged ({error})") from error
