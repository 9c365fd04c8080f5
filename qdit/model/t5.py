"""Load the T5 encoder of a pipeline's folder, apart from everything else in it, and refuse what it cannot be.

Only safetensors are read, plain or of a variant, in one file or in shards. transformers takes one tensor after the
other from the files, so that no weight is in memory twice.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdit.errors import UserError
from qdit.model.encoder import PARTS
from qdit.model.files import brief, check_dtypes, check_finite, read_config
from qdit.model.weights import ENCODER, shapes, weight_files

_VOCABULARIES = ("tokenizer.json", "spiece.model")


@dataclass(frozen=True)
class TextParts:
    """What encodes prompts, of a pipeline whose other parts are not loaded."""

    tokenizer: Any
    text_encoder: Any


def load_t5(root: Path, dtype: torch.dtype, device: torch.device) -> TextParts:
    """The T5 of a pipeline's folder, in evaluation mode.

    Args:
        root: the pipeline, with `text_encoder` and `tokenizer`.
        dtype: of the encoder; float16 overflows in it.
        device: where it runs.

    Raises:
        UserError: transformers is not installed, or a part is missing, damaged, foreign or pickled.
    """
    _check_t5(root)
    from qdit import compat as compat  # before transformers, which imports torchvision

    try:
        from transformers import AutoTokenizer, T5EncoderModel
        from transformers.utils import logging as chatter
    except ImportError as error:
        raise UserError(
            "prompts are encoded by transformers, which is not installed: pip install 'qdit[text]'"
        ) from error
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    folder = root / "text_encoder"
    try:
        tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer", local_files_only=True)
    except Exception as error:  # of a damaged vocabulary tokenizers raises what it likes
        raise UserError(
            f"{root / 'tokenizer'} cannot be read: {brief(str(error))}. Copy or download it again, and install "
            "'qdit[text]' anew (spiece.model needs sentencepiece)"
        ) from error
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": dtype}
    variant, _ = weight_files(folder, ENCODER)
    try:
        made: Any = T5EncoderModel.from_pretrained(folder, variant=variant, output_loading_info=True, **options)
    except Exception as error:  # whatever transformers says of foreign values
        raise UserError(f"{folder}: config.json and the weights do not fit together: {brief(str(error))}") from error
    network, report = made
    if missing := sorted(report["missing_keys"]):  # transformers only warns, and leaves random weights
        raise UserError(f"{folder}: {len(missing)} tensors are missing, such as {missing[0]}; download it again")
    check_finite(network, folder, dtype)
    check_dtypes(network, folder, dtype, "model.text_dtype")
    return TextParts(tokenizer, network.to(device).eval().requires_grad_(False))


def check_parts(root: Path) -> None:
    """Refuse a pipeline whose text encoders are missing, damaged or pickled; weights are not read.

    Raises:
        UserError: naming the folder.
    """
    for part in PARTS:
        if not (root / part).is_dir():
            raise UserError(
                f"{root} has no {part}/, and not all prompts are in the condition cache; give the whole pipeline, or "
                "the cache_dir of a run that encoded these prompts"
            )
    for folder in sorted(root.glob("text_encoder*")):
        shapes(folder, ENCODER)


def _check_t5(root: Path) -> None:
    """Refuse a text encoder that is no T5, and a tokenizer without its vocabulary."""
    check_parts(root)
    folder = root / "text_encoder"
    config = read_config(folder)
    if (kind := config.get("model_type")) != "t5":
        raise UserError(
            f"{folder / 'config.json'} is of model_type {kind} ({config.get('architectures')}); this adapter reads a T5"
        )
    if not any((root / "tokenizer" / name).is_file() for name in _VOCABULARIES):
        raise UserError(f"{root / 'tokenizer'} has neither of {', '.join(_VOCABULARIES)}; copy or download it again")
