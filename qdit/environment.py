"""What a result was made with: time, commit, versions and peak memory; and memory that is free handed back.

Imports no torch until memory is asked for.
"""

import ctypes
import gc
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("qdit", "torch", "diffusers", "hydra-core", "torch-fidelity", "timm", "numpy")


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state() -> dict[str, Any] | None:
    """Commit of qdit's checkout and whether it has local changes; None for an installed package."""
    root = Path(__file__).parents[1]
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
    return _resident("VmHWM") or _largest_resident()


def memory_megabytes() -> dict[str, float]:
    """Memory of this process, and of the accelerator if one is used, in MB (10⁶ bytes): now, and the most so far.

    `resident` and `resident_peak` are of the process (without the first where the system has no /proc),
    `accelerator` and `accelerator_peak` are allocated tensors.
    """
    import torch

    found = {"resident_peak": _resident("VmHWM") or _largest_resident()}
    if now := _resident("VmRSS"):
        found["resident"] = now
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        found["accelerator"] = torch.cuda.memory_allocated()
        found["accelerator_peak"] = torch.cuda.max_memory_allocated()
    return {name: count / 1e6 for name, count in found.items()}


def _resident(field: str) -> int | None:
    """Bytes that Linux has of this process in a field of its status; None elsewhere."""
    with suppress(OSError, StopIteration):  # no such file, or no such line
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    return None


def _largest_resident() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Python's and the packages' versions; a checkout that is not installed has none of its own."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def release() -> None:
    """Collect garbage, and give the system what the C library keeps of it (glibc's `malloc_trim`; others keep it)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
