"""Load the text encoders of a pipeline's folder, apart from everything else in it, and refuse what they cannot be.

Only safetensors are read, plain or of a variant, in one file or in shards. transformers takes one tensor after the
other from the files, so that no weight is in memory twice. Which class a folder is loaded as, the family says, and not
the folder.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from qdit.errors import UserError
from qdit.model.encoder import PARTS
from qdit.model.files import brief, check_dtypes, check_finite, read_config
from qdit.model.weights import ENCODER, shapes, weight_files

Kinds = Mapping[str, str]
"""Class of transformers by the folder of an encoder: `{"text_encoder": "T5EncoderModel"}`."""
T5_ALONE: Kinds = {"text_encoder": "T5EncoderModel"}
MODEL_TYPES = {
    "T5EncoderModel": ("T5", ("t5",)),
    "UMT5EncoderModel": ("UMT5", ("umt5",)),
    "LlamaModel": ("Llama", ("llama",)),
    "Qwen2_5_VLForConditionalGeneration": ("Qwen2.5-VL", ("qwen2_5_vl",)),
    "Qwen3ForCausalLM": ("Qwen3", ("qwen3",)),
    "Gemma2Model": ("Gemma 2", ("gemma2",)),
    "CLIPTextModel": ("CLIP", ("clip_text_model", "clip")),
    "CLIPTextModelWithProjection": ("CLIP", ("clip_text_model", "clip")),
}
"""Name and `model_type` of a config, by class."""
_VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.json")


def load_encoders(root: Path, kinds: Kinds, dtype: torch.dtype, device: torch.device) -> Any:
    """The text encoders of a pipeline's folder in evaluation mode, and their tokenizers, as attributes.

    Args:
        root: the pipeline, with `text_encoder`, `tokenizer`, `text_encoder_2`, …
        kinds: which folders, and as which classes.
        dtype: of the encoders; float16 overflows in a T5.
        device: where they run.

    Raises:
        UserError: transformers is not installed, or a part is missing, damaged, foreign or pickled.
    """
    check_parts(root)
    for part, kind in kinds.items():
        _check_kind(root, part, kind)
    from qdit import compat as compat  # before transformers, which imports torchvision

    try:
        from transformers.utils import logging as chatter
    except ImportError as error:
        raise UserError(
            "prompts are encoded by transformers, which is not installed: pip install 'qdit[text]'"
        ) from error
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    found = {tokenizer_of(part): _load_tokenizer(root / tokenizer_of(part)) for part in kinds}
    return SimpleNamespace(**found, **{part: _load(root / part, kind, dtype, device) for part, kind in kinds.items()})


def tokenizer_of(part: str) -> str:
    """The folder of an encoder's tokenizer.

    >>> tokenizer_of("text_encoder_2")
    'tokenizer_2'
    """
    return part.replace("text_encoder", "tokenizer")


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of a damaged vocabulary tokenizers raises what it likes
        raise UserError(
            f"{folder} cannot be read: {brief(str(error))}. Copy or download it again, and install 'qdit[text]' anew "
            "(spiece.model needs sentencepiece)"
        ) from error


def _load(folder: Path, kind: str, dtype: torch.dtype, device: torch.device) -> Any:
    import transformers

    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": dtype}
    variant, _ = weight_files(folder, ENCODER)
    try:
        made: Any = getattr(transformers, kind).from_pretrained(
            folder, variant=variant, output_loading_info=True, **options
        )
    except Exception as error:  # whatever transformers says of foreign values
        raise UserError(f"{folder}: config.json and the weights do not fit together: {brief(str(error))}") from error
    network, report = made
    if missing := sorted(report["missing_keys"]):  # transformers only warns, and leaves random weights
        raise UserError(f"{folder}: {len(missing)} tensors are missing, such as {missing[0]}; download it again")
    check_finite(network, folder, dtype)
    check_dtypes(network, folder, dtype, "model.text_dtype")
    return network.to(device).eval().requires_grad_(False)


def check_parts(root: Path) -> None:
    """Refuse a pipeline whose text encoders are missing, damaged or pickled; weights are not read.

    Raises:
        UserError: naming the folder.
    """
    for part in PARTS:
        _check_there(root, part)
    for folder in sorted(root.glob("text_encoder*")):
        shapes(folder, ENCODER)


def _check_there(root: Path, part: str) -> None:
    if not (root / part).is_dir():
        raise UserError(
            f"{root} has no {part}/, and not all prompts are in the condition cache; give the whole pipeline, or "
            "the cache_dir of a run that encoded these prompts"
        )


def _check_kind(root: Path, part: str, kind: str) -> None:
    """Refuse a text encoder of another class, and a tokenizer without its vocabulary."""
    _check_there(root, part)
    _check_there(root, tokenizer_of(part))
    config, (name, types) = read_config(root / part), MODEL_TYPES[kind]
    if (found := config.get("model_type")) not in types:
        raise UserError(
            f"{root / part / 'config.json'} is of model_type {found} ({config.get('architectures')}); this adapter "
            f"reads a {name}"
        )
    if not any((root / tokenizer_of(part) / file).is_file() for file in _VOCABULARIES):
        raise UserError(
            f"{root / tokenizer_of(part)} has neither of {', '.join(_VOCABULARIES)}; copy or download it again"
        )
