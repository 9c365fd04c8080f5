"""FLUX.1 dev and schnell (Black Forest Labs 2024; no paper): text to image by a T5 and the pooled vector of a CLIP.

Latents are packed into tokens of 2×2 inside `denoise`. Double blocks have a stream for the image and one for the text;
single blocks join them, and end in one linear layer over attention and feed-forward side by side, which is one site
here, whose input has two parts (`Site.second`). dev reads the scale of guidance; schnell is not guided, and of either a
negative prompt may be used in two calls (`true_cfg_scale` of the pipeline), which qdit does where the network reads no
scale. Left out: folds into the two parts of that layer's input; image prompts; control networks.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.model.base import Attention, Site
from qdit.model.checks import Keys, number, whole
from qdit.model.joint import JointModel, LoadedJoint, shifted
from qdit.model.loaded import LATENT_SCALE
from qdit.model.prompt_encoders import EncodedByStock, Rows

PATCH = 2
"""Latents of a token, along a side."""


class LoadedPacked(LoadedJoint):
    """A pipeline of square images whose latents are packed into tokens of 2×2.

    Args:
        side: of the latents of a sample; 128 is the pipelines' 1024 pixels.
    """

    time_unit = 1000

    def __init__(self, *parts: Any, side: int = 128, **text: Any) -> None:
        self.side = side
        super().__init__(*parts, **text)

    def shape_of(self, config: Any) -> tuple[int, ...]:
        """See `Loaded`: unpacked."""
        return config.in_channels // PATCH**2, self.side, self.side

    @property
    def facts(self) -> dict[str, int]:
        """See `Loaded`."""
        return super().facts | {"side": self.side}

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """See `Loaded`: evenly spaced noise levels, which the scheduler shifts once."""
        options = shifted(scheduler, (self.side // PATCH) ** 2, 1.15)
        scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps), **options)

    @classmethod
    def adapt(cls, transformer: Any, pipe: Any = None, text_length: int | None = None, **facts: int) -> Self:
        """See `LoadedText`; the size is that of the pipeline, `default_sample_size`."""
        side = facts.get("side") or getattr(pipe, "default_sample_size", 128)
        return super().adapt(transformer, pipe, text_length, side=side)


class LoadedFlux(EncodedByStock, LoadedPacked):
    """A FLUX pipeline ready to run: see `qdit.model.base.DiffusionModel`."""

    tokenizer = "tokenizer_2"
    tokens = 512

    def __init__(self, denoiser: nn.Module, *parts: Any, **text: Any) -> None:
        config: Any = denoiser.config
        self.guided = "embedded" if config.guidance_embeds else "two_calls"
        self.guidance_word = "guidance_scale" if config.guidance_embeds else "true_cfg_scale"
        self.told_guidance = 3.5
        super().__init__(denoiser, *parts, **text)

    @staticmethod
    def one_sample(denoiser: Any, tokens: int, side: int = 128) -> Any:
        """Call a FLUX on the meta device."""
        pooled = torch.empty(1, denoiser.config.pooled_projection_dim, device="meta")
        return on_meta(denoiser, tokens, side, 3, pooled)

    def structure(self, denoiser: nn.Module) -> tuple[list[Site], list[Attention]]:
        """See `Loaded`; what closes a single block reads the attention's output, and beside it the feed-forward's."""
        sites, attentions = super().structure(denoiser)
        return with_parts(sites, denoiser), attentions

    def denoise(
        self, x: Float[Tensor, "B C h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C h w"]:
        """Call the network on x_t, times and numbers of prompts; the velocity, from data to noise."""
        rows, height = self.table.at(y, self.dtype), x.shape[2] // PATCH
        text = rows["encoder_hidden_states"]
        told = {"img_ids": places(height, x.shape[3] // PATCH).to(text), "txt_ids": text.new_zeros(text.shape[1], 3)}
        if self.guided == "embedded":
            told["guidance"] = torch.full((len(x),), self.told_guidance, device=x.device)
        with self.clock.showing(t):
            output = self.denoiser(packed(x.to(self.dtype)), timestep=t / 1000, **rows, **told, return_dict=False)[0]
        return unpacked(output, height)

    @staticmethod
    def encode(pipe: Any, length: int, prompts: list[str]) -> Rows:
        """The T5's rows, [n, length, width], and the CLIP's pooled vectors, [n, width]."""
        options = {"max_sequence_length": length, "device": pipe.text_encoder.device}
        rows, pooled, _ = pipe.encode_prompt(prompts, None, **options)
        return {"encoder_hidden_states": rows, "pooled_projections": pooled}


def on_meta(denoiser: Any, tokens: int, side: int, axes: int, *pooled: Tensor) -> Any:
    """Call a network of packed latents on the meta device, with coordinates of so many axes for each token."""
    config, image = denoiser.config, (side // PATCH) ** 2
    x = torch.empty(1, image, config.in_channels, device="meta")
    text = torch.empty(1, tokens, config.joint_attention_dim, device="meta")
    one = torch.empty(1, device="meta")
    ids = {"img_ids": torch.empty(image, axes, device="meta"), "txt_ids": torch.empty(tokens, axes, device="meta")}
    return denoiser(x, text, *pooled, one, guidance=one if config.guidance_embeds else None, **ids)


def with_parts(sites: list[Site], denoiser: nn.Module, gated: tuple[str, ...] = ()) -> list[Site]:
    """The sites, with what closes a single block known to read an attention's output and a feed-forward's beside it.

    Args:
        sites: as they were derived.
        denoiser: the network.
        gated: roles of the sites that read a product with a gate.
    """
    config: Any = denoiser.config
    width = config.num_attention_heads * config.attention_head_dim
    known = (replace(site, gated=site.role in gated) for site in sites)
    return [replace(site, second=width) if site.role == "parallel_out" else site for site in known]


def packed(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B tokens C*4"]:
    """Latents as tokens of 2×2, row by row, channels first."""
    return x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def unpacked(x: Float[Tensor, "B tokens C*4"], rows: int) -> Float[Tensor, "B C h w"]:
    """The inverse of `packed`, of images of so many rows of tokens."""
    found = x.view(len(x), rows, -1, x.shape[-1] // PATCH**2, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return found.flatten(4).flatten(2, 3)


def places(rows: int, columns: int) -> Float[Tensor, "tokens 3"]:
    """Zero, row and column of each token of an image, for the rotary embeddings."""
    grid = torch.meshgrid(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)), indexing="ij")
    return torch.stack(grid, -1).view(-1, 3)


@dataclass(kw_only=True)
class PackedModel(JointModel):
    """Which checkpoint, and the size of its square images.

    Args:
        size: pixels of an image, along a side.
    """

    loaded: ClassVar[type[LoadedPacked]]  # pyright: ignore[reportIncompatibleVariableOverride]

    size: int

    def protocol(self) -> str:
        """See `TextModel`."""
        return f"{super().protocol()}|size={self.size}"

    def facts(self, vae: nn.Module | None) -> dict[str, int]:
        """See `TextModel`.

        Raises:
            UserError: the size is not one of whole tokens.
        """
        pixels = PATCH * (LATENT_SCALE if vae is None else self.loaded.latents_of(vae.config)[1])
        if self.size < pixels or self.size % pixels:
            raise UserError(f"model.size={self.size}; allowed: multiples of {pixels} pixels, a token's")
        return {"side": PATCH * self.size // pixels}


@dataclass(kw_only=True)
class Flux(PackedModel):
    """Which checkpoint, and the size of its images; dev reads 512 tokens of a prompt, schnell 256."""

    transformer = "FluxTransformer2DModel"
    pipeline = "FluxPipeline"
    loaded = LoadedFlux
    encoders = {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}  # noqa: RUF012
    counts = ("num_single_layers", "joint_attention_dim", "pooled_projection_dim")

    def check_more(self, keys: Keys) -> None:
        """See `JointModel`."""
        keys.flag("guidance_embeds")
        keys.one_of("patch_size", (1,))
        keys.expect("axes_dims_rope", _parts, "a list of even numbers", optional=True)


def _parts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(whole(each) and number(each) and each % 2 == 0 for each in value)
