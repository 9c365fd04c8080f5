"""Pipelines of diffusers as they are, to judge what others quantized: called, and not looked into.

A pipeline of any family and any quantization is sampled by its own `__call__`, one generator a sample, from which it
draws the noise that qdit's samplers give the same sample. What it hands to its autoencoder is the final latent, of
which its autoencoder makes the pixels later, as of a run's other samples. So the paired metrics of latents and of
pixels mean what they mean elsewhere.

Left out: pipelines whose autoencoder is called several times (frame by frame), or is told more than latents.
"""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from qdit import compat as compat  # before diffusers
from qdit.errors import UserError
from qdit.model.adapter import Listener, family
from qdit.model.files import brief, read_config
from qdit.model.loaded import Loaded
from qdit.model.silence import without_bars
from qdit.model.wan import LoadedWan22
from qdit.nn.clock import Clock

log = logging.getLogger("qdit")


class _Reached(Exception):
    """The autoencoder was called: sampling is over."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents


class Called:
    """A pipeline, seen as what makes latents of conditions and pixels of latents.

    Args:
        pipe: of diffusers, with a transformer and an autoencoder.
        texts: the prompts by their numbers, the negative one last; None where conditions are classes.

    Raises:
        UserError: it has none, or does not take what it is given.
    """

    guided = "two_calls"
    """How, its call knows."""
    framewise = False

    def __init__(self, pipe: Any, texts: Sequence[str] | None) -> None:
        parts = [part for part in ("transformer", "vae") if not isinstance(getattr(pipe, part, None), nn.Module)]
        self.takes = inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}
        self.reads, other = ("class_labels", "prompt") if texts is None else ("prompt", "class_labels")
        if parts or self.reads not in self.takes:
            lack = f"it has no {parts[0]}" if parts else f"its call takes no {self.reads}"
            advice = "; use another dataset (prompts, or one of classes)" if not parts and other in self.takes else ""
            raise UserError(f"a {type(pipe).__name__} cannot be judged so: {lack}{advice}")
        made: Any = pipe
        self.pipe, self.texts, self.denoiser = made, texts, made.transformer
        self.null_class = int(getattr(self.denoiser.config, "num_embeds_ada_norm", None) or 0)
        self.modality = "video" if {"num_frames", "video_length"} & set(self.takes) else "image"
        self.device, self.dtype = self.denoiser.device, self.denoiser.dtype
        made.set_progress_bar_config(disable=True)

    @property
    def num_classes(self) -> int:
        """Of a pipeline that takes classes, how many there are."""
        return self.null_class

    @property
    def image_size(self) -> int | None:
        """Pixels along a side, where nothing else is asked for; None where the configs do not say so."""
        side = getattr(self.denoiser.config, "sample_size", None)
        widths = getattr(self.pipe.vae.config, "block_out_channels", None)
        return side * 2 ** (len(widths) - 1) if isinstance(side, int) and widths else None

    @property
    def frames_per_second(self) -> int:
        """Of clips, as its family's are shown; 8 of one that qdit does not know."""
        if self.pipe.config.get("expand_timesteps"):  # Wan 2.2 with 5 B parameters, of the same class as the others
            return LoadedWan22.frames_per_second
        return getattr(family(self.denoiser), "frames_per_second", 8)

    def hides_null(self, words: dict[str, Any]) -> str | None:
        """Why a call with these words shows its network no negative prompt, and what to use; None if it does."""
        kind = type(self.pipe).__name__
        if "negative_prompt" not in self.takes:
            return f"the call of a {kind} takes no negative_prompt; leave it empty"
        if "negative_prompt" in words:
            return "sampler.call has another negative_prompt; leave one of them out"
        key = "true_cfg_scale" if "true_cfg_scale" in self.takes else "guidance_scale"
        scale = words.get(key, self.takes[key].default if key in self.takes else None)
        if not isinstance(scale, int | float) or scale > 1:
            return None
        option = "sampler.guidance=4" if key == "guidance_scale" else "sampler.call={true_cfg_scale: 4}"
        return f"the call of a {kind} has {key}={scale:g}; use one above 1 ({option}), or leave it empty"

    def attentions(self) -> list[Any]:
        """None are known."""
        return []

    def turns(self) -> list[Any]:
        """None are known: a pipeline's call is its own affair."""
        return []

    @torch.no_grad()
    def call(
        self, labels: Int[Tensor, " B"], generators: list[torch.Generator], **words: Any
    ) -> Float[Tensor, "B C *places"]:
        """What the autoencoder is given at the end of a call: final latents, scaled as it knows them, float32.

        Args:
            labels: the number of a prompt, or of a class, for each sample.
            generators: one for each sample.
            words: other arguments of the call.

        Raises:
            UserError: the call does not take a word, or hands its autoencoder something else.
        """
        if strange := [word for word in words if word not in self.takes]:
            raise UserError(
                f"the call of a {type(self.pipe).__name__} does not take {', '.join(strange)}; it takes "
                f"{', '.join(list(self.takes)[1:])}"
            )
        given = {self.reads: labels.tolist() if self.texts is None else [self.texts[n] for n in labels.tolist()]}
        if self.texts is not None and self.texts[-1] and "negative_prompt" in self.takes:
            given["negative_prompt"] = [self.texts[-1]] * len(labels)
        vae = self.pipe.vae
        vars(vae)["decode"] = _reached
        # A stock DiTPipeline says class 1000 to every model where it means none.
        heard = Listener(Clock(), self.null_class).listen(self.denoiser) if self.texts is None else []
        try:
            self.pipe(**given, generator=generators, **words)
        except _Reached as end:
            latents = end.latents
        else:
            raise UserError(f"the call of this {type(self.pipe).__name__} does not end at its autoencoder")
        finally:
            del vars(vae)["decode"]
            for hook in heard:
                hook.remove()
        if len(latents) != len(labels):
            raise UserError(
                f"this {type(self.pipe).__name__} decodes {len(latents)} latents of {len(labels)} samples at once: "
                "pipelines that decode frame by frame are not judged"
            )
        return latents.float()

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C *places"]) -> UInt8[Tensor, "B *frames 3 H W"]:
        """Decode final latents to pixels, a sample at a time if they are clips.

        Raises:
            UserError: a pixel is not finite.
        """
        vae = self.pipe.vae
        made = vae.decode(latents.to(vae.device, vae.dtype), return_dict=False)[0]
        if made.ndim == 5:  # an autoencoder of clips; where a pipeline makes images with it (Qwen-Image), of one frame
            made = made.transpose(1, 2) if self.modality == "video" else made[:, :, 0]
        return Loaded.pixels(made, "samples")


def _reached(latents: Tensor, *others: Any, **about: Any) -> None:
    # LTX hands over a timestep that is None, where its autoencoder knows none.
    if any(other is not None for other in others) or about.keys() - {"return_dict", "generator"}:
        raise UserError("this pipeline tells its autoencoder more than latents, and is not judged")
    raise _Reached(latents)


@dataclass(kw_only=True)
class Pipeline:
    """Two folders of pipelines: one that others quantized, and the same in full precision.

    Args:
        name: in protocols.
        path: the folder that is judged.
        against: the folder in full precision; None where `path` is itself that.
    """

    name: str
    path: str
    against: str | None

    def protocol(self) -> str:
        """Name what is sampled; which weights it has, a digest says."""
        return self.name

    def load(self, device: torch.device, dtype: torch.dtype, texts: Sequence[str] | None) -> "Called":
        """The pipeline of `path`, see `opened`."""
        return opened(self.path, "model.path", device, dtype, texts)

    def load_reference(self, device: torch.device, dtype: torch.dtype, texts: Sequence[str] | None) -> "Called":
        """The pipeline of `against`, see `opened`."""
        assert self.against is not None
        return opened(self.against, "model.against", device, dtype, texts)


def opened(path: str, key: str, device: torch.device, dtype: torch.dtype, texts: Sequence[str] | None) -> Called:
    """A folder's pipeline, as diffusers loads it: whole, without pickles, and without code of the folder's.

    Args:
        path: the folder.
        key: the config key, for messages.
        device: where its parts go.
        dtype: of what is not quantized.
        texts: see `Called`.

    Raises:
        UserError: there is none, a package that its quantization needs is missing, or diffusers refuses it.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    folder = Path(path).expanduser()
    read_config(folder, "model_index.json")
    try:
        with without_bars():
            made: Any = DiffusionPipeline.from_pretrained(
                folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
            )
        made.to(device)
    except UserError:
        raise
    except Exception as error:  # whatever diffusers, and what it imports for a quantization, say of the folder
        what = "needs a package that is not here" if isinstance(error, ImportError) else "cannot be loaded"
        raise UserError(f"{key}={path} {what}: {brief(str(error)) or type(error).__name__}") from error
    return Called(made, texts)
