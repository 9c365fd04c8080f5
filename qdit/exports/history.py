"""The run that an exported model comes from: its config and record, and the pipeline that it quantized."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdit.assets import folder_of
from qdit.errors import UserError
from qdit.model.hub import is_id
from qdit.model.silence import without_bars


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
    if model.get("boundary_ratio") is not None:
        raise UserError(
            "this run quantized two networks, and an export holds one; quantizer=load quantizer.path=THE_RUN takes "
            "both from the run, and qdit.quantize takes one of a pipeline's transformers, by a recipe without data"
        )
    path = model.get("path")
    about = {"torch_dtype": getattr(torch, config["dtype"]), "use_safetensors": True}
    parts: dict[str, Any] = {}
    try:
        with without_bars():
            if (vae := model.get("vae_path")) is not None:
                safe = {"revision": model.get("vae_revision"), "use_safetensors": True}
                parts["vae"] = AutoencoderKL.from_pretrained(vae, **safe)
            where = path if is_id(path) else str(folder_of(path))
            return DiffusionPipeline.from_pretrained(where, revision=model.get("revision"), **about, **parts)
    except (OSError, ValueError) as error:
        raise UserError(f"the pipeline of this run, model.path={path}, cannot be read: {error}") from error


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
