"""Dimensions of VBench whose networks share no environment with ours, carried out by VBench's own code elsewhere.

The videos are written once for a set of samples, and each dimension is one process, `qdit.eval.vbench.remote` in the
user's other Python: an argument list without a shell, a time limit, JSON that is checked, results kept by videos and
dimension. Left out: what VBench prints.
"""

import os
import subprocess
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import Result, Samples, Shown
from qdit.eval.per_sample import PerSample
from qdit.eval.reference import Reference
from qdit.eval.vbench import remote
from qdit.eval.vbench.exchange import export, protocol, read_manifest, read_values
from qdit.eval.vbench.totals import DIMENSIONS

PYTHON = "QDIT_VBENCH_PYTHON"
"""The environment variable that names the other environment's Python."""
SHOWN_LINES = 6
_FOLDERS: WeakKeyDictionary[Samples, Path] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class External(PerSample):
    """One dimension of VBench by its own code, on mp4 videos of the samples.

    Args:
        dimension: its name.
        python: the other environment's interpreter; None takes `PYTHON` of the environment.
        folder: where videos and results are kept.
        timeout: seconds that one dimension may take.

    Raises:
        UserError: there is no such dimension.
    """

    modalities = ("video",)
    higher_is_better = True
    shown = Shown(digits=4)
    dimension: str
    python: str | None = None
    folder: str = "cache/vbench"
    timeout: int = 4 * 3600

    def __post_init__(self) -> None:
        """Check the dimension's name."""
        if self.dimension not in DIMENSIONS:
            raise UserError(f"dimension={self.dimension!r}; VBench has {', '.join(DIMENSIONS)}")

    @property
    def suite(self) -> str | None:
        """Of most semantic dimensions VBench's own prompts, whose objects and colours its file names."""
        return None if self.dimension in remote.CUSTOM else "vbench"

    def interpreter(self) -> str | None:
        """The other Python, if one is named."""
        return self.python or os.environ.get(PYTHON)

    def preflight(self, n: int | None = None, reference: object = None, image_size: int | None = None) -> list[str]:
        """No other Python, or one without VBench; no encoder."""
        problems = []
        if (python := self.interpreter()) is None:
            problems.append(
                f"VBench's own code is needed, in an environment of its own: set ${PYTHON} to the Python of one in "
                "which `import vbench` works (docs/metrics.md)"
            )
        elif (found := _process([python, "-c", "import vbench"], 300)) is not None:
            problems.append(f"{python} -c 'import vbench' fails: {found}")
        if find_spec("av") is None:
            problems.append("videos are written by PyAV: pip install 'qdit[video]'")
        return problems

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The value of each video, of an earlier process or of a new one.

        Raises:
            UserError: the process fails, takes too long, or returns what cannot be of these videos.
        """
        manifest = self._videos(samples)
        about = read_manifest(manifest)
        output = manifest.parent / f"{self.dimension}.json"
        if not output.is_file():
            if (python := self.interpreter()) is None:
                raise UserError(*self.preflight())
            fresh = output.with_suffix(".new")
            command = [python, str(Path(remote.__file__)), str(manifest), self.dimension, str(fresh)]
            if (problem := _process(command, self.timeout)) is not None:
                raise UserError(f"VBench's {self.dimension} on {manifest.parent} {problem}")
            if not fresh.is_file():
                raise UserError(f"VBench's {self.dimension} ended without results for {manifest.parent}")
            read_values(fresh, about, self.dimension)  # only what can be of these videos is kept
            fresh.rename(output)
        return read_values(output, about, self.dimension)[0]

    def compute(self, samples: Samples, full_precision: Samples, reference: Reference | None = None) -> Result:
        """Mean and error as of every metric; the protocol says which code made it, of which videos."""
        found = super().compute(samples, full_precision, reference)
        manifest = self._videos(samples)
        about = read_manifest(manifest)
        versions = read_values(manifest.parent / f"{self.dimension}.json", about, self.dimension)[1]
        return replace(found, protocol=protocol(about, versions))

    def _videos(self, samples: Samples) -> Path:
        """The manifest of the samples' videos, which are written once for all dimensions."""
        if samples not in _FOLDERS:
            root = Path(self.folder).expanduser()
            root.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=root, prefix=".new-") as scratch:
                made = read_manifest(export(samples.pieces(), samples.prompts, Path(scratch)))
                final = root / made["digest"]
                if not final.exists():
                    Path(scratch).rename(final)
                    Path(scratch).mkdir()
            _FOLDERS[samples] = final
        return _FOLDERS[samples] / "manifest.json"


def _process(command: list[str], timeout: int) -> str | None:
    """Run a command; what went wrong, with the last lines of its errors, or None."""
    quiet = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, env=quiet)
    except subprocess.TimeoutExpired:
        return f"was ended after {timeout} s; raise the metric's timeout"
    except OSError as error:
        return f"cannot be started ({error.strerror}: {command[0]})"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()][-SHOWN_LINES:]
    return f"failed with code {done.returncode}:\n    " + "\n    ".join(lines or ["no message"])
