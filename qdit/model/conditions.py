"""What a model is conditioned on, by number: a table of encoded prompts, made once and kept in a cache.

Everything in qdit that handles conditions (labels of points, calibration files, guidance) handles whole numbers. For a
class-conditional model a number is a class. For a text model it is a row of this table: first the prompts that are
sampled, then those of calibration, last the negative prompt, which is the null condition. So a prompt of megabytes is
stored once however often it is used.

Each prompt is one file, written as soon as it is encoded, so that a killed encoding goes on where it stopped; rows
behind a prompt's end are cut off, and come back as zeros. The encoder is loaded only if a prompt is missing, and is
freed before the denoiser is loaded.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from qdit.errors import UserError
from qdit.model.encoder import conditions_folder
from qdit.storage.digest import digest
from qdit.storage.seal import Broken
from qdit.storage.tensors import load_with_about, save_tensors

log = logging.getLogger("qdit")
BATCH = 8  # prompts encoded at a time; a kill loses no more


@dataclass(frozen=True)
class Conditions:
    """Encoded prompts: tensors [N, …] by the denoiser's keyword; the last row is the null condition."""

    rows: dict[str, Tensor]

    @property
    def mask(self) -> Bool[Tensor, "N length"] | None:
        """Which rows of each prompt take part in attention; None where the family takes no mask: all do."""
        masks = [rows for rows in self.rows.values() if not rows.is_floating_point()]
        return masks[0].bool() if masks else None

    @property
    def null(self) -> int:
        """The number of the null condition."""
        return len(next(iter(self.rows.values()))) - 1

    def at(self, numbers: Int[Tensor, " B"], dtype: torch.dtype) -> dict[str, Tensor]:
        """The rows of some numbers, on the numbers' device; floats are cast, masks are not."""
        found = {key: rows[numbers.to(rows.device)].to(numbers.device) for key, rows in self.rows.items()}
        return {key: rows.to(dtype) if rows.is_floating_point() else rows for key, rows in found.items()}


@dataclass(frozen=True)
class Texts:
    """How a pipeline turns prompts into conditions."""

    encoder: str
    """A digest of the encoder's files."""
    length: int
    """Tokens of a prompt; longer ones are cut, and counted."""
    dtype: str
    """In which the encoder runs."""
    names: tuple[str, str | None]
    """The denoiser's keywords for the rows and for their mask; None where the family takes no mask."""

    def folder(self, cache_dir: Path) -> Path:
        """Where the encoded prompts of this pipeline lie."""
        return conditions_folder(cache_dir) / digest([self.encoder, self.length, self.dtype])


class Encoder(Protocol):
    """A loaded text encoder."""

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Rows [n, length, d] and mask [n, length] of prompts."""
        ...

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that have more tokens than are read."""
        ...


def conditions(prompts: Sequence[str], texts: Texts, cache_dir: Path, load: Callable[[], Encoder]) -> Conditions:
    """The table of some prompts, from the cache or encoded now.

    Args:
        prompts: in the order of their numbers, the negative prompt last.
        texts: how they are encoded.
        cache_dir: of the run.
        load: loads the encoder; called only if a prompt is missing.

    Raises:
        UserError: the encoder is needed and cannot be loaded.
    """
    folder = texts.folder(cache_dir)
    wanted = list(dict.fromkeys(prompts))
    kept = {prompt: found for prompt in wanted if (found := _read(folder, prompt)) is not None}
    if missing := [prompt for prompt in wanted if prompt not in kept]:
        log.info("encoding %d prompts of %d; the others are in %s", len(missing), len(wanted), folder)
        encode = load()
        if cut := encode.too_long(missing):
            log.warning(
                "%d of %d prompts have more than %d tokens and are cut, such as %.60s",
                *(len(cut), len(missing), texts.length, cut[0]),
            )
        for first in range(0, len(missing), BATCH):
            part = missing[first : first + BATCH]
            for prompt, rows, mask in zip(part, *encode(part), strict=True):
                kept[prompt] = rows[: int(mask.sum())].contiguous().cpu()
                save_tensors(_file(folder, prompt), {"rows": kept[prompt]}, {"prompt": prompt})
        del encode
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    padded = [functional.pad(kept[prompt], (0, 0, 0, texts.length - len(kept[prompt]))) for prompt in prompts]
    rows, mask = texts.names
    table = {rows: torch.stack(padded)}
    if mask is not None:
        valid = torch.tensor([len(kept[prompt]) for prompt in prompts])
        table[mask] = (torch.arange(texts.length) < valid[:, None]).long()
    return Conditions(table)


def _file(folder: Path, prompt: str) -> Path:
    return folder / f"{digest(prompt, 16)}.safetensors"


def _read(folder: Path, prompt: str) -> Tensor | None:
    """A prompt's rows; None if it was not encoded, or its file is damaged or of another prompt."""
    file = _file(folder, prompt)
    if not file.is_file():
        return None
    try:
        tensors, about = load_with_about(file)
        if about.get("prompt") == prompt:
            return tensors["rows"]
        reason = "it is of another prompt"
    except (Broken, UserError, KeyError, OSError) as error:
        reason = str(error)
    log.warning("%s is made again: %s", file, reason)
    return None


class T5:
    """The T5 encoder of a pipeline's folder; prompts are lower-cased and stripped, and not cleaned further.

    Args:
        root: the pipeline, with `text_encoder` and `tokenizer`.
        length: tokens of a prompt.
        dtype: of the encoder; float16 overflows in it.
        device: where it runs.

    Raises:
        UserError: transformers is not installed, or a part is missing or foreign.
    """

    def __init__(self, root: Path, length: int, dtype: torch.dtype, device: torch.device) -> None:
        from qdit import compat as compat  # before transformers, which imports torchvision

        try:
            from transformers import AutoTokenizer, T5EncoderModel
            from transformers.utils import logging as chatter
        except ImportError as error:
            raise UserError(
                "prompts are encoded by transformers, which is not installed: pip install 'qdit[text]'"
            ) from error
        check_parts(root)
        chatter.set_verbosity_error()
        chatter.disable_progress_bar()
        self.length, self.device = length, device
        self.tokenizer: Any = AutoTokenizer.from_pretrained(root / "tokenizer", local_files_only=True)
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": dtype}
        network: Any = T5EncoderModel.from_pretrained(root / "text_encoder", **options)
        self.network = network.to(device).eval()

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `Encoder`."""
        wanted = {"padding": "max_length", "max_length": self.length, "truncation": True, "return_tensors": "pt"}
        ids = self.tokenizer([plain(prompt) for prompt in prompts], add_special_tokens=True, **wanted).to(self.device)
        return self.network(ids.input_ids, attention_mask=ids.attention_mask)[0], ids.attention_mask

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """See `Encoder`."""
        tokens = self.tokenizer([plain(prompt) for prompt in prompts]).input_ids
        return [prompt for prompt, ids in zip(prompts, tokens, strict=True) if len(ids) > self.length]


def plain(prompt: str) -> str:
    """A prompt as the pipelines of PixArt and Latte read it without their cleaning of captions."""
    return prompt.lower().strip()


def check_parts(root: Path) -> None:
    """Refuse a pipeline whose encoder is missing or pickled.

    Raises:
        UserError: naming the folder.
    """
    for part in ("text_encoder", "tokenizer"):
        if not (root / part).is_dir():
            raise UserError(
                f"{root} has no {part}/, and not all prompts are in the condition cache; give the whole pipeline, or "
                "the cache_dir of a run that encoded these prompts"
            )
    if not list((root / "text_encoder").glob("*.safetensors")):
        raise UserError(f"{root / 'text_encoder'} holds no *.safetensors; only these are read (a pickle can run code)")
