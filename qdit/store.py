"""Run directories, atomic files, and hashes of the science. Imports no torch: a finished run is skipped at once.

runs/<study>/<name>-<run_id>/   result.json config.yaml policy.yaml samples.png layers.png timesteps.png samples/
cache/<stage>/<hash>            what runs share: calibration data, full-precision samples
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qdit.errors import UserError
from qdit.hub import named
from qdit.locks import exclusive
from qdit.reading import read_json
from qdit.record_check import wrong
from qdit.seal import DIGEST, Broken, sealed, verify
from qdit.versions import versioned, without_neutral
from qdit.walk import files_below

SCHEMA = 1  # of result.json
SCIENCE = 1  # raised when the mathematics change, so that old results are not taken for new ones
EMBEDDED = Path(__file__).parent / "assets" / "emoji" / "model"
VALUES = "samples/values.safetensors"
"""In a run's folder: paired metrics of each sample, by `<metric>@<digest of its settings>`."""
IMAGES = "samples/images.safetensors"
"""In a run's folder: the images of samples.png, uint8 `images` [n, 3, H, W], for pictures of several runs."""
# What a result depends on. Not here: device, logger, metrics, directories, and names that only label.
PROTOCOL_KEYS = ("model", "dataset", "sampler", "seed", "num_samples", "batch_size", "dtype")
COMPONENTS = (
    *("scope", "calibration", "transform", "weight", "activation", "attention", "rounding", "correction", "search"),
)
"""The config groups that a recipe picks its parts from."""
RECIPE_KEYS = (*COMPONENTS, "bits")
_PARTIAL = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # names of `atomic_write`'s temporary files
ABANDONED = 3600.0  # seconds without a write after which a temporary file is of a process that was killed


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()  # once, at import: it can only be read by setting it, which threads would see


def digest(value: Any) -> str:
    """Eight hex digits of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def science(config: dict) -> dict:
    """The part of a resolved config that a result depends on; full precision does not depend on the recipe."""
    protocol = without_neutral({k: config[k] for k in PROTOCOL_KEYS})
    if is_full_precision(config):
        return protocol
    if (checkpoint := config["quantizer"].get("checkpoint")) is not None:  # all there is to know of a loaded model
        return protocol | {"checkpoint": checkpoint}
    chosen = protocol | versioned({k: config[k] for k in RECIPE_KEYS}, config)
    if isinstance(path := chosen["search"].get("policy"), str):  # what the file says, wherever it lies
        given = Path(path).expanduser()
        found = [file for file in (given, given / "policy.yaml") if file.is_file()]
        chosen["search"] = chosen["search"] | {"policy": content_digest(found, found[0].parent) if found else path}
    return chosen


def is_full_precision(config: dict) -> bool:
    """Whether the scope selects nothing, so that the run is the reference of its protocol."""
    scope = config["scope"]
    return scope["roles"] == [] and scope["include"] == []


def weights(config: dict[str, Any]) -> str:
    """A digest of the checkpoint's weights and configs, so that a new one never meets stale results.

    Hub ids hash as text with their commits (see `qdit.hub`).
    """
    model = config["model"]
    found = [_weights_digest(model["path"], model.get("revision"))]
    if model.get("vae_path"):
        found.append(_weights_digest(model["vae_path"], model.get("vae_revision")))
    return "-".join(found)


def _weights_digest(path: str | None, revision: str | None) -> str:
    folder = EMBEDDED if path is None else Path(path).expanduser()
    found = files_below(folder) if folder.is_dir() else []
    files = [file for file in found if file.name.endswith((".safetensors", ".json"))]
    return content_digest(files, folder) if files else digest(named(path, revision))


def content_digest(files: Iterable[Path], root: Path) -> str:
    """Eight hex digits of the files' names below `root` and contents; hashed once a process while they stay."""
    return _content_digest(root, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _content_digest(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    hasher = hashlib.blake2b(digest_size=4)
    for file, _, _ in files:
        hasher.update(f"{file.relative_to(root).as_posix()}\n".encode())
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
            os.fchmod(handle, 0o666 & ~_UMASK)  # mkstemp's are for the owner alone; results are shared
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        _sweep(path.parent, Path(partial).stat().st_mtime - ABANDONED)
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder or make room") from error
    finally:
        Path(partial).unlink(missing_ok=True)


def _sweep(folder: Path, before: float) -> None:
    """Delete what killed processes left of files that they wrote: last written `before`, by the folder's own clock."""
    for file in folder.glob(".*.tmp"):
        with suppress(OSError):  # another process sweeps, or it is another user's
            if _PARTIAL.fullmatch(file.name) and file.stat().st_mtime < before:
                file.unlink()


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, too: a rename is kept by it and not by the file."""
    with suppress(OSError):  # some file systems have no such thing
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def writable(folder: Path, key: str) -> None:
    """Make a folder and write in it; `key` is the config's name for it.

    Raises:
        UserError: it cannot be made, or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"qdit")
    except OSError as error:
        raise UserError(f"cannot write {key}={folder}: {error.strerror}; try {key}=<another folder>") from error


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; NaN is refused, because a missing number must be missing."""
    atomic_write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def remove(folder: Path, *patterns: str) -> None:
    """Delete the files of a folder that match."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunDir:
    """The directory of one run."""

    path: Path

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
                verify(record)
                if (problem := wrong(record)) is None:
                    return record
                raise Broken(problem)
            found = f"schema {record['schema']}, this version reads {SCHEMA}"
        except Broken as error:
            found = f"damaged ({error})"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # no JSON, or no text
            found = f"not a result record ({error})"
        raise UserError(f"{file} is {found}; move it away, or use overwrite=true to make it again")

    def clear(self) -> None:
        """Remove what was computed, to compute it again."""
        remove(self.path, "result.json", "metrics.json", "search.jsonl", "correction.safetensors")
        remove(self.path, "checkpoint/*", "samples/*.safetensors")

    def save_result(self, record: dict) -> dict:
        """Replace `result.json`, and return what is in it; the metrics that waited for it are in it, too."""
        record = sealed(record)
        write_json(self.path / "result.json", record)
        (self.path / "metrics.json").unlink(missing_ok=True)
        return record

    def policy_digest(self) -> str | None:
        """Hex digest of `policy.yaml`; None if there is none."""
        file = self.path / "policy.yaml"
        return hashlib.sha256(file.read_bytes()).hexdigest()[:32] if file.is_file() else None

    def metrics(self, made: Any = None) -> dict[str, Any]:
        """Metrics that an interrupted run computed before it could write its record.

        None if they are damaged, or of samples that something else made; see `save_metrics`.
        """
        try:
            kept = read_json(self.path / "metrics.json", "")
            if verify(kept) and kept["made"] != made:
                return {}
            return {name: metric for name, metric in kept.items() if name not in ("made", DIGEST)}
        except (UserError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def save_metrics(self, metrics: dict[str, Any], made: Any = None) -> None:
        """Keep metrics until the record is written; `made` is what made their samples."""
        write_json(self.path / "metrics.json", sealed(metrics | {"made": made}))

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Hold the directory for this process; the operating system frees it if the process dies.

        Raises:
            Busy: another process holds it and `wait` is false.
            UserError: the folder cannot be written.
        """
        busy = f"{self.path} is in use by another qdit process; wait for it, or change study or seed"
        with exclusive(self.path / ".lock", busy=None if wait else busy):
            yield
