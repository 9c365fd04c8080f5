"""Digests in the files that a run reads back, so that damage is reported and never computed with. Imports no torch.

A safetensors file has a digest of all names, dtypes, shapes and bytes in its metadata; a JSON object has one under the
key `digest`, a line of a journal under `check`. Files of earlier versions without a digest are read unverified.
"""

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

DIGEST = "digest"
CHECK = "check"
"""Of a line."""
TENSORS_DIGEST = "qdit.digest"
"""In a safetensors file's metadata."""
UNSEALED = ("qdit_reference", "captions")
"""Metadata that files without a digest may have."""


ALIGNMENT = 64  # bytes; the widest vector instructions


class Broken(ValueError):
    """What a file holds is not what was written."""


def digest_of(value: Mapping[str, Any], length: int = 32) -> str:
    """Hex digest of a JSON object, as it will be read: keys are texts then.

    Raises:
        ValueError: there is a number in it that is not finite, which JSON does not have.
    """
    read = json.loads(json.dumps(value, allow_nan=False))
    text = json.dumps(read, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def sealed(value: Mapping[str, Any], key: str = DIGEST, length: int = 32) -> dict[str, Any]:
    """A JSON object with its digest, of `length` hex digits, as the last entry."""
    plain = {name: entry for name, entry in value.items() if name != key}
    return plain | {key: digest_of(plain, length)}


def verify(value: Mapping[str, Any], key: str = DIGEST, length: int = 32) -> bool:
    """Whether a JSON object has a digest, which is then the right one; without one it is unverified.

    Raises:
        Broken: the digest is another one.
    """
    if key not in value:
        return False
    try:
        if value[key] == digest_of({name: entry for name, entry in value.items() if name != key}, length):
            return True
    except ValueError:
        pass
    raise Broken("its digest differs")


def seal_tensors(data: bytes, order: Iterable[str], about: Mapping[str, str]) -> bytes:
    """A safetensors file with its digest, `about` in its metadata, and its names in an order that readers keep.

    Args:
        data: of the file.
        order: the names of its tensors.
        about: more metadata.
    """
    header, content = _split(data)
    metadata = {**header.get("__metadata__", {}), **about}
    ordered = {"__metadata__": metadata} | {name: header[name] for name in order}
    metadata[TENSORS_DIGEST] = _tensors_digest(ordered, content)
    text = json.dumps(ordered, separators=(",", ":")).encode()
    # Tensors are mapped into memory as they lie in the file, and the order of sums depends on where an array begins:
    # numbers stay those of the file without a digest.
    text += b" " * ((len(data) - len(content) - 8 - len(text)) % ALIGNMENT)
    return b"".join((len(text).to_bytes(8, "little"), text, content))


def check_tensors(path: Path) -> tuple[list[str], dict[str, str]]:
    """The names in a safetensors file in their order, and its metadata; without any the file is unverified.

    Raises:
        Broken: the digest is another one, or this is no such file.
        OSError: it cannot be read.
    """
    if not path.stat().st_size:
        raise Broken("it is empty")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header, content = _split(data)
        with content:
            found = _tensors_digest(header, content)
    about = header.get("__metadata__", {})
    # A file that says anything about itself says its digest; statistics of images and captions did not always.
    if (given := about.get(TENSORS_DIGEST)) != found and (given or about.keys() - {"format", *UNSEALED}):
        raise Broken("its digest differs")
    return [name for name in header if name != "__metadata__"], about


def tensors_about(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, unverified; empty where it cannot be read."""
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            return _header(stream.read(size)).get("__metadata__", {}) if size < path.stat().st_size else {}
    except (OSError, Broken):
        return {}


def _split(data: bytes | mmap.mmap) -> tuple[dict[str, Any], memoryview]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 + size or size < 2:
        raise Broken("it ends too early")
    return _header(data[8 : 8 + size]), memoryview(data)[8 + size :]


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Broken("its header is no JSON") from error
    about = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise Broken("its header is not that of a safetensors file")
    return header


def _tensors_digest(header: Mapping[str, Any], content: memoryview) -> str:
    """Of the header as it is ordered, without the digest, and of all bytes behind it."""
    about = {key: text for key, text in header.get("__metadata__", {}).items() if key != TENSORS_DIGEST}
    plain = {"__metadata__": about} | {key: entry for key, entry in header.items() if key != "__metadata__"}
    hasher = hashlib.sha256(json.dumps(plain, separators=(",", ":")).encode())
    hasher.update(content)
    return hasher.hexdigest()[:32]
