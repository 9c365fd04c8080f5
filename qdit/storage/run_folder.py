"""The folder of a run. Imports no torch: a finished run is skipped at once.

runs/<study>/<name>-<run_id>/   result.json config.yaml policy.yaml samples.png layers.png timesteps.png samples/
cache/<stage>/<hash>            what runs share: calibration data, full-precision samples
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdit.errors import UserError
from qdit.storage.atomic import atomic_write, remove, write_json
from qdit.storage.digest import sha256
from qdit.storage.locks import exclusive
from qdit.storage.reading import read_json
from qdit.storage.record_check import wrong
from qdit.storage.seal import DIGEST, Broken, sealed, verify

SCHEMA = 1  # of result.json
VALUES = "samples/values.safetensors"
"""In a run's folder: metrics of each sample, by `<metric>@<digest of its settings>`."""
EXECUTION = "execution.txt"
CLUSTERS = "clusters"
"""In that file: the number of each sample's prompt, int64 [n], where prompts repeat."""
IMAGES = "samples/images.safetensors"
"""In a run's folder: the images of samples.png, uint8 `images` [n, 3, H, W], for pictures of several runs."""


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

    def begin(self, execution: str) -> None:
        """Write how layers multiply, before anything is computed, for a run that goes on with this one."""
        atomic_write(self.path / EXECUTION, f"{execution}\n")

    def begun(self) -> str | None:
        """How layers multiplied when the run was begun; None if it was not, or by an earlier qdit."""
        with suppress(OSError, UnicodeError):
            return (self.path / EXECUTION).read_text().strip()
        return None

    def clear(self) -> None:
        """Remove what was computed, to compute it again."""
        remove(self.path, EXECUTION, "result.json", "metrics.json", "search.jsonl", "correction.safetensors")
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
        return sha256(file)[:32] if file.is_file() else None

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
