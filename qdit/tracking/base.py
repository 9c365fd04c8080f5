"""What a run reports to, and how that is done so that no failure of a logger costs a run."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar

from qdit.environment import memory_megabytes
from qdit.storage.atomic import atomic_write
from qdit.storage.seal import DIGEST, digest_of

log = logging.getLogger("qdit")
_T = TypeVar("_T")
Values = Mapping[str, float] | Callable[[], Mapping[str, float]]
"""Values by name, or what computes them, which is called only where somebody listens."""


class Tracker(Protocol):
    """What a run reports to."""

    def log(self, values: Values, step: int, stage: str) -> None:
        """Report values of one step of a stage, which is the number on the axis of its curves.

        Stages: `calibration` (a timestep), `rounding` (a layer of GPTQ, a unit of AdaRound), `search` (a generation),
        `sensitivities` (a candidate), `sampling` (samples), `evaluation` (a metric), `memory` (seconds since the start;
        `reporting` adds it to all others).
        """
        ...

    def finish(self, record: Mapping[str, Any], run_dir: Path) -> None:
        """Report the finished record, and the pictures and files of the run directory."""
        ...


class Logger(Protocol):
    """A config object that opens a tracker."""

    def knows(self, run_dir: Path) -> bool:
        """Whether the record of this directory was reported before, as it is now."""
        ...

    def open(
        self, config: dict[str, Any], study: str, name: str, run_id: str, run_dir: Path
    ) -> AbstractContextManager[Tracker]:
        """Report one run, given its resolved config, until the block ends."""
        ...

    def compare(self, study: str, folder: Path, page: Callable[[], str]) -> None:
        """Report a study whose sweep has ended: its runs, the text of its `page`, and the configs to make it again."""
        ...


class NoTracker:
    """Reports nothing."""

    def knows(self, run_dir: Path) -> bool:
        """Nothing is ever left to report."""
        return True

    @contextmanager
    def open(self, config: dict[str, Any], study: str, name: str, run_id: str, run_dir: Path) -> Iterator["NoTracker"]:
        """Yield itself."""
        yield self

    def compare(self, study: str, folder: Path, page: Callable[[], str]) -> None:
        """Report nothing of a study."""

    def log(self, values: Values, step: int, stage: str) -> None:
        """Drop the values."""

    def finish(self, record: Mapping[str, Any], run_dir: Path) -> None:
        """Drop the record."""


class _Guarded:
    """Calls a tracker; the first of its exceptions is told as a warning, and none costs the run.

    Beside what it is told, it tells how much memory is in use, whenever a second or more has passed since it last did.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.told = False
        self.begun, self.watched = monotonic(), -1

    def attempt(self, call: Callable[[], _T]) -> _T | None:
        """What a call returns, None if it fails."""
        try:
            return call()
        except Exception as error:
            if not self.told:
                reason = (str(error).strip() or "no message").splitlines()[0]
                log.warning("the logger failed, and the run goes on (%s: %s)", type(error).__name__, reason)
            self.told = True
            return None

    def log(self, values: Values, step: int, stage: str) -> None:
        self.attempt(lambda: self.tracker.log(values, step, stage))
        self.watch()

    def watch(self) -> None:
        seconds = int(monotonic() - self.begun)
        if seconds > self.watched:
            self.watched = seconds
            self.attempt(lambda: self.tracker.log(memory_megabytes, seconds, "memory"))

    def finish(self, record: Mapping[str, Any], run_dir: Path) -> None:
        self.attempt(lambda: self.tracker.finish(record, run_dir))


@contextmanager
def reporting(logger: Logger, config: dict[str, Any], run_id: str, run_dir: Path) -> Iterator[Tracker]:
    """Open a logger for a run so that no failure of the logger reaches the run: it is a copy that is lost then.

    Args:
        logger: of the config.
        config: resolved, of the run.
        run_id: of the run.
        run_dir: of the run.
    """
    tracker = _Guarded(NoTracker())
    opened = tracker.attempt(lambda: logger.open(config, config["study"], config["name"], run_id, run_dir))
    if opened is None or (entered := tracker.attempt(opened.__enter__)) is None:
        yield tracker
        return
    tracker.tracker = entered
    try:
        yield tracker
    except BaseException as error:
        kind, trace = type(error), error.__traceback__
        with suppress(BaseException):  # a context that raises `error` again; what counts is raised below
            opened.__exit__(kind, error, trace)
        raise
    tracker.attempt(lambda: opened.__exit__(None, None, None))


def reported(logger: Logger, run_dir: Path) -> bool:
    """Whether a logger has the run of a directory; one that cannot say so is not asked again."""
    return _Guarded(NoTracker()).attempt(lambda: logger.knows(run_dir)) is not False


def note_reported(run_dir: Path, name: str, record: Mapping[str, Any]) -> None:
    """Note that the logger of a name has the whole report of a run up to this record."""
    atomic_write(run_dir / f".reported-{name}", f"{_digest(record)}\n")


def was_reported(run_dir: Path, name: str) -> bool:
    """Whether the record of a directory is the one that the logger of a name was told of last.

    What a logger has written tells less: an attempt that was killed leaves files, too.
    """
    try:
        known = (run_dir / f".reported-{name}").read_text(encoding="utf-8").strip()
        return known == _digest(json.loads((run_dir / "result.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def _digest(record: Mapping[str, Any]) -> str:
    return record.get(DIGEST) or digest_of(record)


def compared(logger: Logger, study: str, folder: Path, page: Callable[[], str]) -> None:
    """Have a logger report a study, whose folder is given; its failure costs nothing but the copy.

    Args:
        logger: of the config.
        study: its name.
        folder: of its runs.
        page: makes its report as one HTML text, if it is wanted.
    """
    _Guarded(NoTracker()).attempt(lambda: logger.compare(study, folder, page))
