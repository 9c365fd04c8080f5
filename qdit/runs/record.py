"""The record of a run: `result.json`, one flat, schema-versioned mapping with everything a table needs."""

import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

from qdit.config import flatten
from qdit.ledger import Ledger
from qdit.storage.run_folder import SCHEMA

PACKAGES = ("qdit", "torch", "diffusers", "hydra-core", "torch-fidelity", "timm", "numpy")


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


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state() -> dict[str, Any] | None:
    """Commit of qdit's checkout and whether it has local changes; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def reset_peak_memory() -> None:
    """Start a new maximum: a multirun's runs share a process. Where that cannot be done the old one stays."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM


def peak_memory_bytes() -> int:
    """The most memory this process held: of the accelerator if one was used, else resident."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, StopIteration):  # no such file, or no such line
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Python's and the packages' versions; a checkout that is not installed has none of its own."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


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


def cost(ledger: Ledger, executed: str, stopwatch: Stopwatch, samples_per_second: float | None) -> dict[str, Any]:
    """The cost block: the ledger, seconds a stage, memory, and what really ran."""
    return asdict(ledger) | {
        "seconds": {k: round(v, 3) for k, v in stopwatch.seconds.items()},
        "peak_memory_bytes": peak_memory_bytes(),
        "samples_per_second": samples_per_second,
        "executed": executed,
    }


def keep_earlier(costs: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """The costs of a run that was continued: rate and execution when the samples were made, a stage's longest time."""
    if earlier:
        if costs["samples_per_second"] is None:
            costs |= {key: earlier.get(key, costs[key]) for key in ("samples_per_second", "executed")}
        before = earlier.get("seconds", {})
        costs["seconds"] |= {k: max(v, costs["seconds"].get(k, 0.0)) for k, v in before.items()}
    return costs
