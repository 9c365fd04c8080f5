"""Dimensions of VBench whose networks share no environment with ours, carried out by VBench's own code elsewhere.

The videos are written once for a set of samples, and each dimension is one process, `qdit.eval.vbench.remote` in the
user's other Python: an argument list without a shell, a time limit, JSON that is checked, results kept by videos,
dimension and versions, of which each is made by one process while others wait. Left out: what VBench prints.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import Result, Samples, Shown
from qdit.eval.per_sample import PerSample
from qdit.eval.reference import Reference
from qdit.eval.vbench import remote
from qdit.eval.vbench.exchange import FPS, MANIFEST, changed, export, names_of, protocol, read_manifest
from qdit.eval.vbench.results import read_values
from qdit.eval.vbench.totals import DIMENSIONS
from qdit.storage.digest import digest
from qdit.storage.locks import exclusive, once
from qdit.storage.reading import parse_json

PYTHON = "QDIT_VBENCH_PYTHON"
"""The environment variable that names the other environment's Python."""
SHOWN_LINES = 6
IMPORTS = 300
"""Seconds that the other environment may take to import VBench."""
_FOLDERS: WeakKeyDictionary[Samples, Path] = WeakKeyDictionary()


class Failed(Exception):
    """A process that ended badly, or not at all; the text says how."""


@cache
def versions_of(python: str) -> dict[str, str] | str:
    """What results of another environment depend on, or why it cannot be used; asked once, for all dimensions."""
    try:
        printed = _process([python, str(Path(remote.__file__)), "versions"], IMPORTS)
        return parse_json(printed.strip().rpartition("\n")[2], f"{python}'s versions", "mend that environment")
    except Failed as failure:
        return f"{python} cannot import torch and vbench: it {failure}"
    except UserError as error:
        return str(error)


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

    def judges(self) -> str:
        """Its dimension."""
        return self.dimension

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
        elif isinstance(problem := versions_of(python), str):
            problems.append(problem)
        if find_spec("av") is None:
            problems.append("videos are written by PyAV: pip install 'qdit[video]'")
        return problems

    def unreadable(self, prompts: Sequence[str]) -> list[str]:
        """Prompts that give no names of files, or of VBench's suite none that is this dimension's."""
        try:
            names_of(prompts)
        except UserError as error:
            return list(error.problems)
        return super().unreadable(prompts)

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The value of each video, of an earlier process or of a new one; NaN of one that is not judged.

        Raises:
            UserError: the process fails, takes too long, or returns what cannot be of these videos.
        """
        return self._judge(samples)[0]

    def compute(self, samples: Samples, full_precision: Samples, reference: Reference | None = None) -> Result:
        """Mean and error over the videos that are judged; the protocol says which code made it, of which videos.

        Raises:
            UserError: as `each`; or the sets differ in size, or no video is judged.
        """
        found = super().compute(samples, full_precision, reference)
        return replace(found, protocol=self._judge(samples)[1])

    def _each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """`each`, which has been checked."""
        return self.each(samples, full_precision)

    def _judge(self, samples: Samples) -> tuple[Float[Tensor, " n"], str]:
        """The value of each video, and the protocol."""
        if (python := self.interpreter()) is None or isinstance(versions := versions_of(python), str):
            raise UserError(*self.preflight())
        manifest = self._videos(samples)
        about = read_manifest(manifest)
        output = manifest.with_name(f"{self.dimension}-{digest(versions)}.json")
        once(output, partial(self._run, python, manifest, output))
        values, made = read_values(output, about, self.dimension)
        return values, protocol(about, made)

    def _run(self, python: str, manifest: Path, output: Path) -> None:
        """Have the videos judged, and keep what can be of them.

        Raises:
            UserError: see `each`.
        """
        fresh = output.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        try:
            command = [python, str(Path(remote.__file__)), str(manifest), self.dimension, str(fresh)]
            _process(command, self.timeout)
        except Failed as failure:
            raise UserError(f"VBench's {self.dimension} on {manifest.parent} {failure}") from None
        if not fresh.is_file():
            raise UserError(f"VBench's {self.dimension} ended without results for {manifest.parent}")
        read_values(fresh, read_manifest(manifest), self.dimension)
        fresh.rename(output)

    def _videos(self, samples: Samples) -> Path:
        """The manifest of the samples' videos, which are written once for all dimensions."""
        if samples not in _FOLDERS:
            root = Path(self.folder).expanduser()
            root.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=root, prefix=".new-") as scratch:
                made = Path(scratch) / "made"
                fps = getattr(samples, "frames_per_second", FPS)  # clips of a folder do not say theirs
                final = root / read_manifest(export(samples.pieces(), samples.prompts, made, fps=fps))["digest"]
                with exclusive(root / ".lock"):
                    if final.exists() and changed(final / MANIFEST):
                        shutil.rmtree(final)
                    if not final.exists():
                        made.rename(final)
            _FOLDERS[samples] = final
        return _FOLDERS[samples] / MANIFEST


def _process(command: list[str], timeout: int) -> str:
    """Run a command; what it printed. At the time limit everything that it started is ended with it.

    Raises:
        Failed: with the last lines of its errors.
    """
    quiet = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    about: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    try:
        # A group of its own: a wrapper's children would go on after it, and keep the pipes open.
        process = subprocess.Popen(command, **about, env=quiet, start_new_session=True)
    except OSError as error:
        raise Failed(f"cannot be started ({error.strerror}: {command[0]})") from error
    with process:
        try:
            printed, errors = process.communicate(timeout=timeout)
        except BaseException as error:  # Ctrl-C, too, which reaches this group alone
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"was ended after {timeout} s; raise the metric's timeout") from None
            raise
    if process.returncode:
        lines = [line for line in errors.strip().splitlines() if line.strip()][-SHOWN_LINES:]
        raise Failed(f"failed with code {process.returncode}:\n    " + "\n    ".join(lines or ["no message"]))
    return printed
