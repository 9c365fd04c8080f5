"""Which text encoder a pipeline has, without reading its gigabytes. Imports no torch.

The encoder decides what a prompt becomes, so it is part of a run's identity and of the key of the condition cache. It
is known by its tokenizer and by the names, sizes and contents of its weight files; of files of gigabytes, by pieces
that are spread over them. Once prompts were encoded, the cache remembers it, so that a run goes on when the encoder's
folder is gone.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdit.assets import folder_of
from qdit.errors import UserError
from qdit.model.hub import named
from qdit.storage.atomic import write_json
from qdit.storage.digest import digest, sha256
from qdit.storage.reading import read_json
from qdit.storage.walk import files_below

PARTS = ("text_encoder", "tokenizer")
WHOLE = 1 << 28  # bytes up to which a file is read whole
_PIECES, _PIECE = 64, 1 << 20  # of longer ones


def reads_text(model: Mapping[str, Any]) -> bool:
    """Whether a model's config is of one that is conditioned on prompts."""
    return "text_length" in model


def encodes(part: str) -> bool:
    """Whether a folder of a pipeline only encodes prompts: `text_encoder`, `tokenizer`, `text_encoder_2`, …"""
    return part.startswith(PARTS)


def conditions_folder(cache_dir: Path) -> Path:
    """Where encoded prompts lie."""
    return cache_dir / "conditions"


def encoder_digest(path: str, revision: str | None, cache_dir: Path) -> str | None:
    """Eight hex digits of a pipeline's encoder; None if it is not there and no prompt was encoded by it.

    Args:
        path: the pipeline's folder, embedded or not, or a hub id, which is known by its commit.
        revision: of a hub id.
        cache_dir: remembers the digest for when the folder is gone.
    """
    folder = folder_of(path)
    if not folder.is_dir():
        return digest(named(path, revision))
    files = [file for part in folder.iterdir() if encodes(part.name) and part.is_dir() for file in files_below(part)]
    if not any(file.suffix == ".safetensors" for file in files):
        return _remembered(folder, cache_dir)
    return digest(
        [[file.relative_to(folder).as_posix(), file.stat().st_size, _content(file)] for file in sorted(files)]
    )


def remember(path: str, encoder: str, cache_dir: Path) -> None:
    """Note which encoder a folder had, for when it is gone; a hub id needs no note.

    Raises:
        UserError: the cache cannot be written.
    """
    if (folder := folder_of(path)).is_dir() and _remembered(folder, cache_dir) != encoder:
        write_json(_memory(folder, cache_dir), {"encoder": encoder})


def _memory(folder: Path, cache_dir: Path) -> Path:
    return conditions_folder(cache_dir) / f"encoder-{digest(str(folder.resolve()))}.json"


def _remembered(folder: Path, cache_dir: Path) -> str | None:
    try:
        found = read_json(_memory(folder, cache_dir), "")["encoder"]
    except (UserError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _content(file: Path) -> str:
    """A digest of a file, or of pieces spread over a long one, from its first byte to its last."""
    size = file.stat().st_size
    if size <= WHOLE:
        return sha256(file)
    hasher = hashlib.sha256()
    with file.open("rb") as stream:
        for number in range(_PIECES):
            stream.seek(number * (size - _PIECE) // (_PIECES - 1))
            hasher.update(stream.read(_PIECE))
    return hasher.hexdigest()
