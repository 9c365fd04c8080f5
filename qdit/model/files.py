"""Find and check the files of a pretrained pipeline before diffusers opens them, so that complaints name the file.

Only safetensors are read: a pickled `.bin` can run code when it is loaded. A model id of the Hugging Face hub is
first copied to the local cache; from there on everything is a folder.
"""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from qdit import compat as compat  # before diffusers
from qdit.assets import EMBEDDED
from qdit.errors import UserError
from qdit.model.hub import is_id
from qdit.storage.reading import read_json

# diffusers' names: diffusion_pytorch_model[.VARIANT][-00001-of-00002][.VARIANT].safetensors
_WEIGHTS = re.compile(
    r"diffusion_pytorch_model(?:\.(?P<before>[^.]+?))?(?:-\d+-of-\d+)?(?:\.(?P<after>[^.]+))?\.safetensors"
)
_FLOATS = ("F16", "BF16", "F32", "F64")


def locate(path: str | None, revision: str | None, key: str, patterns: list[str]) -> Path:
    """Return the folder of a checkpoint: the embedded one (None), a local folder, or the hub's copy in the cache.

    Args:
        path: None, a folder, or `owner/name` on the hub.
        revision: branch, tag or commit on the hub; None is its main branch.
        key: the config key, for messages.
        patterns: the files to fetch from the hub.

    Raises:
        UserError: nothing is there, or the hub cannot be reached.
    """
    if path is None:
        if not (EMBEDDED / "model_index.json").is_file():
            raise UserError(
                f"the embedded model is not installed: {EMBEDDED} has no model_index.json. Reinstall qdit, train it "
                f"with experiments/emoji_dit/train.py, or set {key} to a diffusers folder or a hub id"
            )
        return EMBEDDED
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not is_id(path):
        raise UserError(
            f"{key}={path}: no such folder (looked for {folder.absolute()}). Allowed: null (the embedded model), "
            "a folder in diffusers' format (model_index.json, transformer/, vae/, scheduler/), or a hub id such as "
            "facebook/DiT-XL-2-256"
        )
    return _download(path, revision, key, patterns)


def _download(repo: str, revision: str | None, key: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client's errors have no common base: requests, OSError and its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{key}={repo}: not a folder here, and not available from the hub at revision {revision or 'main'} "
            f"({type(error).__name__}: {reason}). Check the name and the network, or download it elsewhere "
            f"(`hf download {repo} --local-dir DIR`) and set {key}=DIR"
        ) from error


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Read one JSON config of a pipeline.

    Raises:
        UserError: it is missing or is not JSON.
    """
    file = folder / name
    if not file.is_file():
        raise UserError(
            f"{file} is missing. A model is a folder in diffusers' format: model_index.json beside transformer/, vae/ "
            "and scheduler/, as written by DiTPipeline.save_pretrained"
        )
    return read_json(file, "copy or download it again", infinite=name == "scheduler_config.json")


def check_class(folder: Path, config: dict[str, Any], supported: tuple[str, ...]) -> None:
    """Refuse another architecture.

    Raises:
        UserError: `_class_name` is not supported.
    """
    found = config.get("_class_name")
    if found not in supported:
        raise UserError(
            f"{folder / 'config.json'} is of class {found}; this adapter reads {' or '.join(supported)}. "
            "Choose another `model` option, or write an adapter (qdit/model/dit.py is the example)"
        )


def weight_files(folder: Path) -> tuple[str | None, list[Path]]:
    """Find the weights of a module: the variant (None is the plain one, else such as fp16), and its files.

    Raises:
        UserError: there are none, several variants and no plain one, or an index that names files elsewhere.
    """
    variants: dict[str | None, list[Path]] = {}
    for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        if match := _WEIGHTS.fullmatch(file.name):
            variants.setdefault(match["before"] or match["after"], []).append(file)
    if not variants:
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        found = f"only {', '.join(pickles)}, a pickle, which can run code when it is loaded" if pickles else "none"
        raise UserError(
            f"{folder} has no diffusion_pytorch_model*.safetensors (found: {found}). Convert the weights with "
            "safetensors, or, on the hub, set the revision that holds a safetensors copy (often refs/pr/1)"
        )
    if None not in variants and len(variants) > 1:
        raise UserError(
            f"{folder} holds several variants ({', '.join(sorted(map(str, variants)))}) and no plain "
            "diffusion_pytorch_model.safetensors; keep the one that is meant"
        )
    variant = next(iter(variants)) if None not in variants else None
    files = variants[variant]
    return variant, files if len(files) == 1 else _shards(folder, variant, files)


def _shards(folder: Path, variant: str | None, files: list[Path]) -> list[Path]:
    """The files that the index of a divided module names; a single file that lies beside them comes first."""
    plain = folder / f"diffusion_pytorch_model{'' if variant is None else f'.{variant}'}.safetensors"
    if plain in files:
        return [plain]
    name = f"diffusion_pytorch_model.safetensors.index{'' if variant is None else f'.{variant}'}.json"
    index = read_config(folder, name).get("weight_map")
    known = {file.name: file for file in files}
    if not isinstance(index, dict) or not index:
        raise UserError(f"{folder / name} is damaged: it has no weight_map. Copy or download it again")
    named = sorted({str(shard) for shard in index.values()})
    if missing := [shard for shard in named if shard not in known]:
        raise UserError(f"{folder / name} names {missing[0]}, which is not beside it. Copy or download it again")
    return [known[shard] for shard in named]


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a module, from the files' headers alone; opening them compares their length, too.

    Raises:
        UserError: there are none, or one is truncated or not safetensors, or does not hold floating-point numbers.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder)[1]:
        try:
            with safe_open(file, "pt") as stream:
                slices = {key: stream.get_slice(key) for key in stream.keys()}  # noqa: SIM118 - not a dict
                types = {key: piece.get_dtype() for key, piece in slices.items()}
                found |= {key: tuple(piece.get_shape()) for key, piece in slices.items()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is truncated or damaged ({error}). Copy or download it again") from error
        if foreign := [f"{key} ({kind})" for key, kind in types.items() if kind not in _FLOATS]:
            raise UserError(
                f"{file}: {len(foreign)} of {len(types)} tensors are not in floating point, such as {foreign[0]}. The "
                "model is quantized already; give the original"
            )
    return found


def load_module(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load one diffusers module from a local folder: evaluation mode, no gradients, upcast or cast to `dtype`.

    Raises:
        UserError: files are missing or damaged, config and weights disagree, or a weight is NaN or infinite.
    """
    shapes(folder)
    variant, _ = weight_files(folder)
    chatter = logging.getLogger("diffusers")
    level = chatter.level
    chatter.setLevel(logging.CRITICAL)  # its warnings about missing tensors are our errors below
    try:
        module, report = kind.from_pretrained(
            folder,
            variant=variant,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # whatever diffusers says of foreign values
        reason = _brief(str(error)) or type(error).__name__
        raise UserError(f"{folder}: config.json and the weights do not fit together: {reason}") from error
    finally:
        chatter.setLevel(level)
    # diffusers only warns here, and leaves random weights or drops layers.
    missing = sorted(report["missing_keys"])
    surplus = sorted(k for k in report["unexpected_keys"] if not k.endswith("pos_embed.pos_embed"))
    if missing or surplus:
        raise UserError(
            f"{folder}: config.json and the weights do not fit together: {len(missing)} tensors missing "
            f"({', '.join(missing[:3]) or 'none'}), {len(surplus)} not used ({', '.join(surplus[:3]) or 'none'})"
        )
    for name, tensor in module.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{folder}: {name} contains NaN or infinity in {dtype}. The checkpoint is damaged, or overflows in "
                "this dtype: try dtype=float32, or download it again"
            )
    return module.eval().requires_grad_(False)


def _brief(message: str) -> str:
    """The first lines of a library's message, on one line, without advice that does not apply here."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and "ignore_mismatched" not in line]
    return " ".join(lines[:3]) + (f" … and {len(lines) - 3} more" if len(lines) > 3 else "")
