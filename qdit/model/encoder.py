"""Which text encoder a pipeline has, without reading its gigabytes. Imports no torch.

The encoder decides what a prompt becomes, so it is part of a run's identity and of the key of the condition cache. It
is known by the names, sizes and headers of its weight files and by its tokenizer. Once it was seen, the cache remembers
it, so that a run goes on when the encoder's folder is gone.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdit.errors import UserError
from qdit.model.hub import named
from qdit.storage.atomic import write_json
from qdit.storage.digest import digest
from qdit.storage.reading import read_json
from qdit.storage.walk import files_below

log = logging.getLogger("qdit")
PARTS = ("text_encoder", "tokenizer")
"""Folders of a pipeline that only encode prompts."""
_HEADER = 1 << 20  # bytes of a weight file that are read at most


def reads_text(model: Mapping[str, Any]) -> bool:
    """Whether a model's config is of one that is conditioned on prompts."""
    return "text_length" in model


def conditions_folder(cache_dir: Path) -> Path:
    """Where encoded prompts lie."""
    return cache_dir / "conditions"


def encoder_digest(path: str, revision: str | None, cache_dir: Path) -> str | None:
    """Eight hex digits of a pipeline's encoder; None if it is not there and was never seen.

    Args:
        path: the pipeline's folder, or a hub id, which is known by its commit.
        revision: of a hub id.
        cache_dir: remembers the digest for when the folder is gone.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return digest(named(path, revision))
    memory = conditions_folder(cache_dir) / f"encoder-{digest(str(folder.resolve()))}.json"
    files = [file for part in PARTS if (folder / part).is_dir() for file in files_below(folder / part)]
    if not any(file.suffix == ".safetensors" for file in files):
        return _remembered(memory)
    found = digest([[file.relative_to(folder).as_posix(), file.stat().st_size, _head(file)] for file in sorted(files)])
    if _remembered(memory) != found:
        try:
            write_json(memory, {"encoder": found})
        except UserError:  # a cache that cannot be written is told by who needs it
            log.debug("%s cannot be written", memory)
    return found


def _remembered(memory: Path) -> str | None:
    try:
        found = read_json(memory, "")["encoder"]
    except (UserError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _head(file: Path) -> str:
    """A digest of a small file, or of the header of a large one."""
    with file.open("rb") as stream:
        start = stream.read(8)
        size = int.from_bytes(start, "little") if file.suffix == ".safetensors" else _HEADER
        return digest((start + stream.read(min(size, _HEADER))).hex())
