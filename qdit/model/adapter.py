"""The adapter of a network that is loaded already: found by the class of a diffusers transformer.

A family of models is one class with a method `adapt`, and one line here. A family of one's own is entered from outside:
`qdit.model.adapter.FAMILIES["HunyuanDiT2DModel"] = "my_module.MyLoaded"` (docs/add_a_model.md).
"""

from copy import copy
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qdit.errors import UserError
from qdit.model.base import DiffusionModel
from qdit.model.checks import SCHEDULERS, check_schedule
from qdit.nn.clock import Clock

FAMILIES = {
    "DiTTransformer2DModel": "qdit.model.dit.LoadedDiT",
    "PixArtTransformer2DModel": "qdit.model.pixart.LoadedPixArt",
    "LatteTransformer3DModel": "qdit.model.latte.LoadedLatte",
    "SD3Transformer2DModel": "qdit.model.sd3.LoadedSD3",
    "FluxTransformer2DModel": "qdit.model.flux.LoadedFlux",
    "Flux2Transformer2DModel": "qdit.model.flux2.LoadedFlux2",
    "WanTransformer3DModel": "qdit.model.wan.LoadedWan",
    "QwenImageTransformer2DModel": "qdit.model.qwen_image.LoadedQwenImage",
    "SanaTransformer2DModel": "qdit.model.sana.LoadedSana",
    "LTXVideoTransformer3DModel": "qdit.model.ltx.LoadedLTX",
    "HunyuanVideoTransformer3DModel": "qdit.model.hunyuan_video.LoadedHunyuanVideo",
    "CogVideoXTransformer3DModel": "qdit.model.cogvideox.LoadedCogVideoX",
}
"""Class of the transformer -> class of its adapter."""


def adapt(transformer: Any, **about: Any) -> DiffusionModel:
    """The adapter of a diffusers transformer in full precision, without the rest of its pipeline: it cannot decode.

    Args:
        transformer: as diffusers loaded it.
        about: what families that read prompts are told, see `qdit.model.loaded_text.LoadedText.adapt`.

    Raises:
        UserError: no adapter is for its class, or it is not a transformer.
    """
    name = type(transformer).__name__
    if (kind := family(transformer)) is None:
        whole = hasattr(transformer, "transformer")
        advice = "give its transformer, pipe.transformer" if whole else "docs/add_a_model.md shows how one is written"
        raise UserError(f"there is no adapter for a {name}; there are for {', '.join(FAMILIES)}; {advice}")
    return kind.adapt(transformer, **about)


def family(transformer: Any) -> Any:
    """The adapter's class for a transformer; None of a family that has none."""
    if (path := FAMILIES.get(type(transformer).__name__)) is None:
        return None
    module, _, kind = path.rpartition(".")
    return getattr(import_module(module), kind)


def completed(adapter: DiffusionModel, pipe: Any) -> DiffusionModel:
    """A copy of an adapter that knows the autoencoder and the noise schedule of a pipeline.

    Raises:
        UserError: the pipeline's scheduler does not say how the noise was in the training.
    """
    schedule = dict(pipe.scheduler.config) | {"_class_name": type(pipe.scheduler).__name__}
    check_schedule(Path("pipe.scheduler"), schedule, getattr(adapter, "schedulers", SCHEDULERS))
    made: Any = copy(adapter)
    made.complete(pipe.vae, schedule)
    return moved(made)


def moved(adapter: Any) -> DiffusionModel:
    """The adapter, told where its network is now and in which dtype."""
    adapter.device, adapter.dtype = adapter.denoiser.device, adapter.denoiser.dtype
    return adapter


class Listener:
    """Shows a model's clock the timesteps of every call, whoever calls: a stock pipeline knows of no clock.

    Labels beyond the model's classes become the null class: diffusers' DiTPipeline says 1000 to every model.
    It is an object, and no closure, so that a copy of a model has its own.

    Args:
        clock: the layers'.
        null_class: the greatest label.
        time_unit: of the network's timesteps, in the scheduler's.
    """

    def __init__(self, clock: Clock, null_class: int, time_unit: float = 1.0) -> None:
        self.clock, self.null_class, self.time_unit = clock, null_class, time_unit
        self._before: list[Tensor | None] = []

    def listen(self, denoiser: nn.Module) -> list[RemovableHandle]:
        """Hear every call from now on; removing what is returned ends it."""
        return [
            denoiser.register_forward_pre_hook(self.begin, with_kwargs=True),
            denoiser.register_forward_hook(self.end, always_call=True),
        ]

    def begin(self, denoiser: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Show the timesteps of a call, one for each sample."""
        given = signature(denoiser.forward).bind(*args, **kwargs).arguments
        timestep, samples = torch.as_tensor(given["timestep"]), len(given["hidden_states"])
        self._before.append(self.clock.timesteps)
        shown = timestep if self.time_unit == 1 else timestep.float() * self.time_unit
        if shown.ndim == 2:  # a timestep for each token; the noise of a sample is its noisiest token's
            shown = shown.amax(1)
        self.clock.timesteps = shown.reshape(-1).expand(samples)
        if given.get("class_labels") is not None:
            given["class_labels"] = given["class_labels"].clamp(max=self.null_class)
        return (), given

    def end(self, denoiser: nn.Module, args: tuple, output: Any) -> None:
        """Show what was shown before."""
        self.clock.timesteps = self._before.pop()
