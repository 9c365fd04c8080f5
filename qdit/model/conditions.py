"""What a model is conditioned on, by number: a table of encoded prompts, made once and kept in a cache.

Everything in qdit that handles conditions (labels of points, calibration files, guidance) handles whole numbers. For a
class-conditional model a number is a class. For a text model it is a row of this table: first the prompts that are
sampled, then those of calibration, last the negative prompt, which is the null condition. So a prompt of megabytes is
stored once however often it is used.

Each prompt is one file, written as soon as it is encoded, so that a killed encoding goes on where it stopped; zeros at
the end of a tensor (behind a short prompt) are cut off, and come back. The encoder is loaded only if a prompt is
missing, and is freed before the denoiser is loaded.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from qdit.environment import release
from qdit.errors import UserError
from qdit.model.prompt_encoders import Encoder, Rows
from qdit.storage.digest import digest
from qdit.storage.seal import Broken
from qdit.storage.tensors import load_with_about, save_tensors

log = logging.getLogger("qdit")
NEGATIVE = "\0negative\0"  # before a prompt's name in the cache; no file of captions has it
BATCH = 8  # prompts encoded at a time; a kill loses no more


@dataclass(frozen=True)
class Conditions:
    """Encoded prompts: tensors [N, …] by the denoiser's keyword; the last row is the null condition."""

    rows: Rows

    @property
    def null(self) -> int:
        """The number of the null condition."""
        return len(next(iter(self.rows.values()))) - 1

    def at(self, numbers: Int[Tensor, " B"], dtype: torch.dtype) -> Rows:
        """The rows of some numbers, on the numbers' device; floats are cast, masks are not."""
        found = {key: rows[numbers.to(rows.device)].to(numbers.device) for key, rows in self.rows.items()}
        return {key: rows.to(dtype) if rows.is_floating_point() else rows for key, rows in found.items()}


def conditions(
    prompts: Sequence[str], folder: Path, load: Callable[[], Encoder], negative_apart: bool = False
) -> Conditions:
    """The table of some prompts, from the cache or encoded now.

    Args:
        prompts: in the order of their numbers, the negative prompt last.
        folder: where those of one encoder are kept, a file each.
        load: loads the encoder; called only if a prompt is missing.
        negative_apart: whether the negative prompt is encoded in another way.

    Raises:
        UserError: the encoder is needed and cannot be loaded.
    """
    table, missing = _Filling(_marked(prompts, negative_apart)), []
    for prompt in table.places:
        if (found := _read(folder, prompt)) is not None:
            table.put(prompt, found)
        else:
            missing.append(prompt)
    if missing:
        log.info("encoding %d prompts of %d; the others are in %s", len(missing), len(table.places), folder)
        encode = load()
        for prompt, rows in _each(missing, encode):
            table.put(prompt, rows)
            _write(folder, prompt, rows)
        del encode
        release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return Conditions(table.rows)


def encoded(prompts: Sequence[str], encode: Encoder) -> Conditions:
    """The table of some prompts, encoded now and not kept; the negative prompt is the last."""
    prompts = _marked(prompts, getattr(encode, "negative", None) is not None)
    table = _Filling(prompts)
    for prompt, rows in _each(list(table.places), encode):
        table.put(prompt, rows)
    return Conditions(table.rows)


def _marked(prompts: Sequence[str], negative_apart: bool) -> list[str]:
    """The prompts; the last with a mark where it is encoded in another way, as it may be one of the others, too."""
    return [*prompts[:-1], NEGATIVE + prompts[-1]] if negative_apart else list(prompts)


def _each(prompts: list[str], encode: Encoder) -> Iterator[tuple[str, Rows]]:
    """Each prompt with what it becomes, on the CPU; those that are cut are counted."""
    if apart := [prompt for prompt in prompts if prompt.startswith(NEGATIVE)]:
        negative: Any = getattr(encode, "negative")  # noqa: B009
        made = negative([prompt.removeprefix(NEGATIVE) for prompt in apart])
        for number, prompt in enumerate(apart):
            yield prompt, {key: rows[number].cpu() for key, rows in made.items()}
        prompts = [prompt for prompt in prompts if prompt not in apart]
    if cut := encode.too_long(prompts):
        log.warning(
            "%d of %d prompts have more than %d tokens and are cut, such as %.60s",
            *(len(cut), len(prompts), encode.length, cut[0]),
        )
    for first in range(0, len(prompts), BATCH):
        part = prompts[first : first + BATCH]
        found = {key: rows.cpu() for key, rows in encode(part).items()}
        for number, prompt in enumerate(part):
            yield prompt, {key: rows[number] for key, rows in found.items()}


class _Filling:
    """A table that is filled prompt by prompt, as thousands of prompts are gigabytes, which are held once."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.count, self.rows = len(prompts), Rows()
        self.places: dict[str, list[int]] = {}
        for number, prompt in enumerate(prompts):
            self.places.setdefault(prompt, []).append(number)

    def put(self, prompt: str, rows: Rows) -> None:
        """Keep what a prompt became, wherever it stands."""
        for key, tensor in rows.items():
            if key not in self.rows:
                self.rows[key] = tensor.new_empty(self.count, *tensor.shape)
            self.rows[key][self.places[prompt]] = tensor


def _file(folder: Path, prompt: str) -> Path:
    return folder / f"{digest(prompt, 16)}.safetensors"


def _write(folder: Path, prompt: str, rows: Rows) -> None:
    """Keep a prompt's tensors without the zeros at their ends."""
    used = {key: tensor.flatten(1).any(1) if tensor.ndim > 1 else tensor != 0 for key, tensor in rows.items()}
    ends = {key: int(each.nonzero().max()) + 1 if each.any() else 0 for key, each in used.items()}
    about = {"prompt": prompt, "lengths": json.dumps({key: len(tensor) for key, tensor in rows.items()})}
    save_tensors(_file(folder, prompt), {key: tensor[: ends[key]] for key, tensor in rows.items()}, about)


def _read(folder: Path, prompt: str) -> Rows | None:
    """A prompt's tensors; None if it was not encoded, or its file is damaged or of another prompt."""
    file = _file(folder, prompt)
    if not file.is_file():
        return None
    try:
        tensors, about = load_with_about(file)
        if about.get("prompt") == prompt:
            lengths = json.loads(about["lengths"])
            return {key: _padded(tensor, lengths[key]) for key, tensor in tensors.items()}
        reason = "it is of another prompt"
    except (Broken, UserError, KeyError, OSError, ValueError, TypeError) as error:
        reason = str(error)
    log.warning("%s is made again: %s", file, reason)
    return None


def _padded(tensor: Tensor, length: int) -> Tensor:
    """With zeros behind, so many rows in all."""
    return functional.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, length - len(tensor)))
