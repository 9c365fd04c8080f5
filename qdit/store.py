"""Run directories, atomic files, hashes of the science, and locks. Imports no torch: a finished run is skipped at once.

runs/<study>/<name>-<run_id>/   result.json config.yaml policy.yaml samples.png layers.png timesteps.png samples/
cache/<stage>/<hash>            what runs share: calibration data, full-precision samples
"""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qdit.errors import UserError

SCHEMA = 1
# What a result depends on. Not here: device, logger, metrics, directories, and names that only label.
PROTOCOL_KEYS = ("model", "dataset", "sampler", "seed", "num_samples", "batch_size", "dtype")
RECIPE_KEYS = (
    *("scope", "calibration", "transform", "weight", "activation"),
    *("attention", "rounding", "correction", "search", "bits"),
)


def digest(value: Any) -> str:
    """Eight hex digits of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def science(config: dict) -> dict:
    """The part of a resolved config that a result depends on; full precision does not depend on the recipe."""
    keys = PROTOCOL_KEYS if is_full_precision(config) else PROTOCOL_KEYS + RECIPE_KEYS
    return {k: config[k] for k in keys}


def is_full_precision(config: dict) -> bool:
    """Whether the scope selects nothing, so that the run is the reference of its protocol."""
    scope = config["scope"]
    return not scope["roles"] and not scope["include"]


def weights_digest(path: str | None, embedded: Path) -> str:
    """A digest of the checkpoint's contents, so that new weights never meet stale results; hub ids hash as text."""
    folder = embedded if path is None else Path(path).expanduser()
    files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return digest(path)
    return _content_digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _content_digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash files once a process, as long as their sizes and times stay."""
    hasher = hashlib.blake2b(digest_size=4)
    for file, _, _ in files:
        with file.open("rb") as stream:
            hasher.update(hashlib.file_digest(stream, "blake2b").digest())
    return hasher.hexdigest()


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write under a temporary name, flush to disk, rename: a reader sees the old file or the new one, never a half.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder or make room") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(handle, 0o666 & ~_umask())  # mkstemp's are for the owner alone; results are shared
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder or make room") from error
    finally:
        Path(partial).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; NaN is refused, because a missing number must be missing."""
    atomic_write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class RunDir:
    """The directory of one run."""

    path: Path

    @property
    def name(self) -> str:
        """Folder name, `<name>-<run_id>`."""
        return self.path.name

    def result(self) -> dict | None:
        """The record written so far, or None.

        Raises:
            UserError: the file is damaged or of another schema.
        """
        file = self.path / "result.json"
        if not file.is_file():
            return None
        try:
            record = json.loads(file.read_text())
            if record["schema"] == SCHEMA:
                return record
            found = f"schema {record['schema']}, this version reads {SCHEMA}"
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            found = f"not a result record ({error})"
        raise UserError(f"{file} is {found}; move it away, or use overwrite=true to make it again")

    def clear(self) -> None:
        """Remove the samples and the record, to compute them again."""
        (self.path / "result.json").unlink(missing_ok=True)
        for chunk in (self.path / "samples").glob("*.safetensors"):
            chunk.unlink()

    def save_result(self, record: dict) -> None:
        """Replace `result.json`."""
        write_json(self.path / "result.json", record)

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Hold the directory for this process; the operating system frees it if the process dies.

        Raises:
            UserError: another process holds it and `wait` is false, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stream = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; choose another runs_dir or make room"
            ) from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UserError(
                    f"{self.path} is in use by another qdit process; wait for it, or change study or seed"
                ) from None
            yield
