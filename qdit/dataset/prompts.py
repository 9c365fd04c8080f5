"""Prompts as a data set: a file of captions, of which each sample has one, and those that calibration sees.

A file is text with a caption a line, JSONL with `prompt` (or `caption`) and perhaps `id` in each line, or CSV with such
columns. Sample i has prompt i mod n and its own noise; so has each trajectory of calibration, from a file of its own
where there is one. Prompts are numbered: the evaluated ones, those of calibration, the negative one.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qdit.assets import PROMPTS, captions_file
from qdit.dataset.base import Source
from qdit.errors import UserError
from qdit.model.base import DiffusionModel
from qdit.seeding import CALIBRATION
from qdit.storage.digest import digest

_LONGEST = 4000  # characters of a caption
_MOST = 1_000_000  # captions of a file


@dataclass(frozen=True)
class Caption:
    """A prompt and the name under which results of its samples are grouped."""

    id: str
    text: str


def read_captions(file: Path, key: str) -> list[Caption]:
    """The captions of a file, in order, of which those without an id are numbered. See `read_rows`."""
    return [Caption(name or str(number), text) for number, (name, text) in enumerate(read_rows(file, key))]


def read_rows(file: Path, key: str) -> list[tuple[str, str]]:
    """The ids, empty where there are none, and captions of a file, in order.

    Args:
        file: `.txt`, `.jsonl` or `.csv`.
        key: the config key, for messages.

    Raises:
        UserError: it is missing, empty, not UTF-8, or a line holds no caption.
    """
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in PROMPTS.glob("*.txt")))
        raise UserError(f"{key}={file}: no such file; give a file of captions (.txt, .jsonl, .csv), or one of: {known}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{key}={file} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{key}={file} cannot be read: {error.strerror}") from error
    rows = {".jsonl": _jsonl, ".csv": _csv}.get(file.suffix, _lines)(text, file, key)
    found = [(name, caption.strip()) for name, caption in rows]
    if not found:
        raise UserError(f"{key}={file} holds no captions; write one a line")
    if len(found) > _MOST or (long := next((c for _, c in found if len(c) > _LONGEST), None)) is not None:
        what = f"{len(found)} captions" if len(found) > _MOST else f"a caption of {len(long)} characters"  # pyright: ignore[reportPossiblyUnboundVariable, reportArgumentType]
        raise UserError(f"{key}={file} holds {what}; allowed: {_MOST} captions of {_LONGEST} characters")
    return found


def _lines(text: str, _: Path, __: str) -> list[tuple[str, str]]:
    return [("", line) for line in text.splitlines() if line.strip()]


def _jsonl(text: str, file: Path, key: str) -> list[tuple[str, str]]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            found.append((str(entry.get("id", "")), _caption(entry)))
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{key}={file}, line {number}: no JSON object with a text `prompt` or `caption` ({error})"
            ) from error
    return found


def _csv(text: str, file: Path, key: str) -> list[tuple[str, str]]:
    try:
        return [(str(row.get("id") or ""), _caption(row)) for row in csv.DictReader(io.StringIO(text))]
    except (KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{key}={file}: no column named prompt or caption in every row ({error})") from error


def _caption(entry: dict) -> str:
    caption = entry["prompt"] if "prompt" in entry else entry["caption"]
    if not isinstance(caption, str) or not caption.strip():
        raise TypeError("an empty caption")
    return caption


def unshown(dataset: Source, hides: str | None) -> list[str]:
    """One sentence if a data set has a negative prompt that would change a run's protocol, and no sample of it.

    Args:
        dataset: of a run.
        hides: why the network is not shown it, and what to do about it; None if it is.
    """
    if hides is None or not isinstance(dataset, Prompts) or not dataset.negative:
        return []
    return [f"dataset.negative={dataset.negative[:60]!r} has no effect: {hides}"]


@dataclass(kw_only=True)
class Prompts(Source):
    """A file of captions.

    Args:
        name: in tables and protocols.
        file: of captions, or the name of a list that comes with qdit.
        negative: the prompt that guidance pushes away from.
        calibration_file: captions of calibration; None takes those of `file`.
        image_size: pixels along a side of the references; None where there are none.
        reference: name of the reference statistics that distribution metrics compare with.
    """

    file: str
    negative: str = ""
    calibration_file: str | None = None

    def __post_init__(self) -> None:
        """Read the files, so that what is wrong is said before a model is loaded.

        Raises:
            UserError: see `read_captions`.
        """
        self.captions, self.calibration = self._load("file"), self._load("calibration_file")

    def _load(self, key: str) -> list[Caption]:
        name = getattr(self, key)
        if name is None:
            return []
        return read_captions(captions_file(name), f"dataset.{key}")

    @cached_property
    def texts(self) -> list[str]:
        """All prompts by their numbers, the negative one last."""
        return [caption.text for caption in (*self.captions, *self.calibration)] + [self.negative]

    def showing(self, texts: Sequence[str]) -> "Prompts":
        """A copy that has these captions, for evaluation and calibration, and the same negative prompt."""
        made = replace(self)
        made.captions, made.calibration = [Caption(str(n), text) for n, text in enumerate(texts)], []
        return made

    def frequencies(self) -> Float[Tensor, " K"]:
        """The share of each prompt among the evaluated samples."""
        return torch.full((len(self.captions),), 1 / len(self.captions))

    def labels(self, indices: Sequence[int], seed: int) -> Int[Tensor, " B"]:
        """The number of each sample's prompt; trajectories that are not evaluated have prompts of calibration."""
        evaluated, extra = len(self.captions), len(self.calibration)
        numbers = [evaluated + i % extra if extra and i >= CALIBRATION else i % evaluated for i in indices]
        return torch.tensor(numbers)

    def class_names(self) -> list[str]:
        """A caption for each number."""
        return self.texts

    def shared_with_evaluation(self) -> str | None:
        """A sentence if calibration has no prompts of its own."""
        if self.calibration:
            return None
        return "prompts of the search may be evaluated ones; dataset.calibration_file gives it others"

    def clusters_of(self, numbers: Sequence[int]) -> list[str]:
        """The name of each prompt, of calibration's too."""
        ids = [caption.id for caption in (*self.captions, *self.calibration)]
        return [ids[number] for number in numbers]

    def protocol(self) -> str:
        """Name what changes the conditions, readably."""
        negative = f"|negative={digest(self.negative)}" if self.negative else ""
        return f"{self.name}|prompts={len(self.captions)} {digest([c.text for c in self.captions])}{negative}"

    def check(self, model: DiffusionModel) -> list[str]:
        """Describe each mismatch with a model, whose size may not be known (a stock pipeline's)."""
        if self.image_size is not None and model.image_size not in (None, self.image_size):
            return [
                f"dataset {self.name} has references of {self.image_size} px, the model makes {model.image_size}; "
                "choose a dataset and a model that belong together"
            ]
        return []
