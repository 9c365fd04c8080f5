"""What a card tells of the run that an exported model comes from: the pipeline that it quantized, and its command."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qdit.assets import folder_of
from qdit.config import flatten
from qdit.errors import UserError
from qdit.model.hub import is_id

ELSEWHERE = {"allow_download", "cache_dir", "device", "dry", "execution", "name", "overwrite", "runs_dir", "study"}
ELSEWHERE |= {"inception_weights", "logger", "objective", "save_checkpoint"}
"""Keys of a config that a run's results do not depend on, or that its command need not say."""
GROUPS = ("model", "dataset", "quantizer", "bits")
"""Whose options have the names that they say."""


def read_pipeline(config: Mapping[str, Any]) -> Any:
    """The pipeline, in full precision, that the run of a config quantized.

    Raises:
        UserError: there is none, or the run's network is not the one that diffusers makes of its files.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    model = config["model"]
    changed = {"timestep_frequencies": "diffusers", "layer_norm_eps": None}
    if wrong := [key for key, usual in changed.items() if model.get(key, usual) != usual]:
        raise UserError(
            f"this run has model.{wrong[0]}={model[wrong[0]]}, which diffusers knows nothing of: a network that it "
            f"reloads would compute something else. Repeat the run with model.{wrong[0]}={changed[wrong[0]] or 'null'}"
        )
    path = model.get("path")
    about = {"torch_dtype": getattr(torch, config["dtype"]), "use_safetensors": True}
    parts: dict[str, Any] = {}
    try:
        if (vae := model.get("vae_path")) is not None:
            parts["vae"] = AutoencoderKL.from_pretrained(vae, revision=model.get("vae_revision"), use_safetensors=True)
        where = path if is_id(path) else str(folder_of(path))
        return DiffusionPipeline.from_pretrained(where, revision=model.get("revision"), **about, **parts)
    except (OSError, ValueError) as error:
        raise UserError(f"the pipeline of this run, model.path={path}, cannot be read: {error}") from error


def command_of(config: Mapping[str, Any], compose: Callable[..., dict[str, Any]]) -> str | None:
    """The command line of a run with a config; None where none is found that makes the very same.

    Args:
        config: resolved.
        compose: from words to the resolved config.
    """
    words = [f"{group}={config[group]['name']}" for group in GROUPS] + [f"eval=[{','.join(config.get('eval') or ())}]"]
    try:
        flat, usual = _flat(config), _flat(compose(*words))
        changed = {key: value for key, value in flat.items() if key not in usual or usual[key] != value}
        words += [f"~{key}={_word(value)}" for key, value in usual.items() if key not in flat]
        words += [f"{'' if key in usual else '+'}{key}={_word(value)}" for key, value in changed.items()]
        return f"qdit {shlex.join(words)}" if _flat(compose(*words)) == flat else None
    except UserError:
        return None


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that matter, by dotted keys."""
    return {key: value for key, value in flatten(dict(config)).items() if key.split(".")[0] not in ELSEWHERE}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def run_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the record of a finished run.

    Raises:
        UserError: it is no folder of one.
    """
    from qdit.storage.reading import read_yaml
    from qdit.storage.run_folder import RunDir

    record = RunDir(folder).result()
    if record is None or record["status"] != "done":
        raise UserError(f"{folder} is no folder of a finished run; it has no result.json")
    return read_yaml(folder / "config.yaml", "give the folder of a run"), record
