"""Find and check the files of a pretrained pipeline before diffusers opens them, so that complaints name the file.

Only safetensors are read: a pickled `.bin` can run code when it is loaded. A model id of the Hugging Face hub is
first copied to the local cache; from there on everything is a folder.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qdit import compat as compat  # before diffusers
from qdit.assets import MODELS, PREFIX, folder_of
from qdit.errors import UserError
from qdit.model.checks import Keys, check_autoencoder, unquantized
from qdit.model.hub import is_id
from qdit.model.weights import shapes, weight_files
from qdit.storage.reading import read_json

log = logging.getLogger("qdit")
VARIANTS = ["*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*", "*.non_ema.*", "*.non_ema-*"]
"""Second copies of weights on the hub, which are fetched only where there is no plain one."""


def locate(path: str | None, revision: str | None, key: str, patterns: list[str]) -> Path:
    """Return the folder of a checkpoint: the embedded one (None), a local folder, or the hub's copy in the cache.

    Args:
        path: None, `embedded:NAME`, a folder, or `owner/name` on the hub.
        revision: branch, tag or commit on the hub; None is its main branch.
        key: the config key, for messages.
        patterns: the files to fetch from the hub.

    Raises:
        UserError: nothing is there, or the hub cannot be reached.
    """
    folder = folder_of(path)
    if path is None or path.startswith(PREFIX):
        if not (folder / "model_index.json").is_file():
            known = ", ".join(sorted(f"{PREFIX}{each.parent.name}" for each in MODELS.glob("*/model_index.json")))
            raise UserError(
                f"{key}={path or 'null'}: this embedded model is not installed ({folder} has no model_index.json); "
                f"allowed: null (the DiT), {known + ',' if known else ''} a folder in diffusers' format, or a hub id. "
                "Reinstall qdit, or train it as experiments/ does"
            )
        return folder
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
        asked: dict[str, Any] = {"revision": revision, "allow_patterns": patterns}
        folder = Path(snapshot_download(repo, **asked, ignore_patterns=VARIANTS))
        weights = [Path(pattern) for pattern in patterns if pattern.endswith("safetensors")]
        modules = [(config.parent, p.name) for p in weights for config in folder.glob(str(p.with_name("config.json")))]
        if all(any(module.glob(name)) for module, name in modules):
            return folder
        return Path(snapshot_download(repo, **asked))
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


def autoencoder_keys(folder: Path, kind: str) -> Keys:
    """The values of an autoencoder's config, whose class is checked, to be judged by its family.

    Raises:
        UserError: it is missing, is not JSON, or of another class.
    """
    config = read_config(folder)
    check_class(folder, config, (kind,))
    keys = Keys(folder / "config.json", config)
    unquantized(keys)
    return keys


def check_vae(folder: Path) -> None:
    """Refuse a folder that does not hold an autoencoder, or not one that can be.

    Raises:
        UserError: naming the class found, or the values.
    """
    config = read_config(folder)
    check_class(folder, config, ("AutoencoderKL",))
    check_autoencoder(folder / "config.json", config)


def load_module(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load one diffusers module from a local folder: evaluation mode, no gradients, upcast or cast to `dtype`.

    No weight is in memory twice: the module is made without any, and takes one tensor after the other from the files.

    Raises:
        UserError: files are missing or damaged, config and weights disagree, a weight is NaN or infinite, or the class
            does not take this dtype.
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
            low_cpu_mem_usage=True,  # accelerate's way
            output_loading_info=True,
        )
    except Exception as error:  # whatever diffusers says of foreign values
        reason = brief(str(error)) or type(error).__name__
        raise UserError(f"{folder}: config.json and the weights do not fit together: {reason}") from error
    finally:
        chatter.setLevel(level)
    # diffusers only warns here, and leaves random weights or drops layers.
    missing = sorted(report["missing_keys"])
    surplus = sorted(report["unexpected_keys"])
    if text := misfit(missing, surplus):
        raise UserError(f"{folder}: {text}")
    check_finite(module, folder, dtype)
    check_dtypes(module, folder, dtype)
    return module.eval().requires_grad_(False)


def check_finite(module: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Look at every weight.

    Raises:
        UserError: one is NaN or infinite.
    """
    for name, tensor in module.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{folder}: {name} contains NaN or infinity in {dtype}. The checkpoint is damaged, or overflows in "
                "this dtype: try dtype=float32, or download it again"
            )


def check_dtypes(module: Any, folder: Path, dtype: torch.dtype, key: str = "dtype") -> None:
    """Compare the dtypes of a loaded module's weights with the one that was asked for.

    A class may keep some in float32 whatever is asked for, as its authors found that it must; that is only said.

    Raises:
        UserError: others are not as asked for.
    """
    weights = dict(module.named_parameters())
    others = [name for name, weight in weights.items() if weight.dtype != dtype]
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    if foreign := [n for n in others if weights[n].dtype != torch.float32 or kept.isdisjoint(n.split("."))]:
        raise UserError(
            f"{folder}: {key}={_short(dtype)} was asked for, and {len(foreign)} of {len(weights)} weights are in "
            f"{_short(weights[foreign[0]].dtype)} ({', '.join(foreign[:3])}): {type(module).__name__} cannot be loaded "
            f"so; use {key}=float32"
        )
    if others:
        log.warning(
            "%s keeps %d of %d weights in float32 with %s=%s, as its class demands, such as %s",
            *(folder, len(others), len(weights), key, _short(dtype), others[0]),
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def misfit(missing: list[str], surplus: list[str]) -> str:
    """What is wrong with weights that lack tensors, or have more than a config asks for; empty if nothing is."""
    # The one diffusers makes itself, the other only the training of PixArt-α read.
    idle = ("pos_embed.pos_embed", "caption_projection.y_embedding")
    surplus = [name for name in surplus if not name.endswith(idle)]
    if not missing and not surplus:
        return ""
    return (
        f"config.json and the weights do not fit together: {len(missing)} tensors missing "
        f"({', '.join(missing[:3]) or 'none'}), {len(surplus)} not used ({', '.join(surplus[:3]) or 'none'})"
        f"{_changed(surplus)}"
    )


def _changed(surplus: list[str]) -> str:
    """What was done to a network whose weights have other names, and how it is undone, if that can be told."""
    if any("lora_" in name or ".base_layer." in name for name in surplus):
        return ". An adapter (LoRA) is in place: fuse or unload it, and save again"
    if any(".to_qkv." in name or ".to_kv." in name for name in surplus):
        return ". Projections are fused: call unfuse_qkv_projections(), and save again"
    return ""


def brief(message: str) -> str:
    """The first lines of a library's message, on one line, without advice that does not apply here."""
    lines = [line.strip() for line in message.partition(" If you want to instead")[0].splitlines() if line.strip()]
    return " ".join(lines[:3]) + (f" … and {len(lines) - 3} more" if len(lines) > 3 else "")
