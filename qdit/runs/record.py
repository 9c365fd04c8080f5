"""The record of a run: `result.json`, one flat, schema-versioned mapping with everything a table needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from qdit.environment import git_state, now, peak_memory_bytes, versions
from qdit.keys import flatten
from qdit.storage.run_folder import SCHEMA

_SAMPLING = ("samples_per_second", "executed", "executed_layers", "resident_bytes")
"""What is known only while samples are made."""


@dataclass
class Stopwatch:
    """Seconds a stage of this process; `keep_earlier` joins those of a run that was continued."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def move(self, seconds: float, origin: str, stage: str) -> None:
        """Count some seconds of a stage under another one."""
        if seconds:
            self.seconds[origin] -= seconds
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def header(config: dict[str, Any], run_id: str) -> dict[str, Any]:
    """What every record begins with, failed ones too."""
    return {
        "schema": SCHEMA,
        "status": "done",
        "error": None,
        "study": config["study"],
        "name": config["name"],
        "run_id": run_id,
        "seed": config["seed"],
        "config": flatten(config),
    }


def footer(started: str) -> dict[str, Any]:
    """Versions, code and times."""
    return {
        "versions": versions(),
        "git": git_state(),
        "started": started,
        "finished": now(),
    }


def cost(
    ledger: dict[str, Any],
    executed: str,
    stopwatch: Stopwatch,
    samples_per_second: float | None,
    resident_bytes: int | None,
) -> dict[str, Any]:
    """The cost block: the ledger's fields that are known, seconds a stage, memory, and what really ran."""
    return ledger | {
        "seconds": {k: round(v, 3) for k, v in stopwatch.seconds.items()},
        "peak_memory_bytes": peak_memory_bytes(),
        "resident_bytes": resident_bytes,
        "samples_per_second": samples_per_second,
        "executed": executed,
    }


def keep_earlier(costs: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """The costs of a run that was continued: rate, execution and memory of the model when the samples were made, and
    a stage's longest time."""
    if earlier:
        if costs["samples_per_second"] is None:
            costs |= {key: earlier[key] for key in _SAMPLING if key in earlier}
        before = earlier.get("seconds", {})
        costs["seconds"] |= {k: max(v, costs["seconds"].get(k, 0.0)) for k, v in before.items()}
    return costs
