"""Wan 2.1 (Wan Team, arXiv 2503.20314): text to video by cross-attention to a UMT5; blocks see all frames at once.

One projection of the timestep modulates all blocks (adaLN-single), so that no layer of a block can absorb a scale; the
values of both attentions can, and the projection of the text for the keys and values of all blocks. Guidance takes two
calls. Prompts are unescaped and their spaces joined as the pipeline does. Left out: the repair of broken characters
(ftfy); quantization of the time embedder; image to video; Wan 2.2, whose timesteps are those of tokens, or which has
two networks; folds into the gain of the norm before cross-attention's queries.
"""

import html
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from annotated_types import Ge
from jaxtyping import Float, Int, Real, UInt8
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.model.base import Attention, Site
from qdit.model.checks import Keys, number, unquantized, whole
from qdit.model.files import check_class, read_config
from qdit.model.loaded_text import LoadedText
from qdit.model.text import TextModel

TEMPORAL, SPATIAL = 4, 8
"""Frames and pixels of a latent, of the published autoencoder."""


class LoadedWan(LoadedText):
    """A Wan pipeline ready to run: see `qdit.model.base.DiffusionModel`; latents are [C, frames, h, w].

    Args:
        frames, height, width: of the latents.
    """

    modality = "video"
    framewise = False  # its autoencoder is causal: a frame is made of those before it, and all but the first are four
    guided = "two_calls"
    schedulers = ("UniPCMultistepScheduler",)
    projection = "condition_embedder.text_embedder.linear_2"
    tokens = 512

    def __init__(self, *parts: Any, frames: int = 21, height: int = 60, width: int = 104, **text: Any) -> None:
        self.frames, self.height, self.width = frames, height, width
        super().__init__(*parts, **text)

    def shape_of(self, config: Any) -> tuple[int, ...]:
        """See `Loaded`."""
        return config.in_channels, self.frames, self.height, self.width

    @property
    def facts(self) -> dict[str, int]:
        """See `Loaded`."""
        return super().facts | {"frames": self.frames, "height": self.height, "width": self.width}

    @staticmethod
    def one_sample(denoiser: Any, tokens: int, *size: int) -> Any:
        """Call a Wan on the meta device."""
        config = denoiser.config
        x = torch.empty(1, config.in_channels, *size, device="meta")
        text = torch.empty(1, tokens, config.text_dim, device="meta")
        return denoiser(x, torch.zeros(1, dtype=torch.long, device="meta"), text)

    def structure(self, denoiser: nn.Module) -> tuple[list[Site], list[Attention]]:
        """See `Loaded`; not the time embedder, which the class keeps in float32 and asks for its weights' dtype."""
        sites, attentions = super().structure(denoiser)
        return [site for site in sites if ".time_embedder." not in site.name], attentions

    @staticmethod
    def latents_of(config: Any) -> tuple[int, int]:
        """See `Loaded`."""
        return config.z_dim, config.scale_factor_spatial

    def denoise(
        self, x: Float[Tensor, "B C F h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C F h w"]:
        """Call the network on x_t, timesteps and numbers of prompts; the velocity, from data to noise."""
        with self.clock.showing(t):
            rows = self.table.at(y, self.dtype)
            return self.denoiser(x.to(self.dtype), timestep=t, **rows, return_dict=False)[0]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C F h w"]) -> UInt8[Tensor, "B frames 3 H W"]:
        """See `Loaded`; a clip at a time, whose latents have a mean and a deviation for each channel."""
        own: Any = self.decoder
        mean, deviation = (
            torch.tensor(values, device=self.device, dtype=own.dtype).view(1, -1, 1, 1, 1)
            for values in (own.config.latents_mean, own.config.latents_std)
        )
        clips = []
        for n, clip in enumerate(latents.to(self.device, own.dtype).split(1)):
            frames = own.decode(clip / (1.0 / deviation) + mean, return_dict=False)[0]
            clips.append(self.pixels(frames[0].transpose(0, 1), f"frames of clip {n}"))
        return torch.stack(clips)

    @classmethod
    def adapt(cls, transformer: Any, pipe: Any = None, text_length: int | None = None, **facts: int) -> Self:
        """See `LoadedText`; the size is what the pipeline's call makes where it is not told."""
        if pipe is not None and not facts:
            told = {key: each.default for key, each in signature(type(pipe).__call__).parameters.items()}
            facts = latent_size(told["num_frames"], told["height"], told["width"], pipe.vae)
        return super().adapt(transformer, pipe, text_length, **facts)

    @staticmethod
    def clean(prompt: str) -> str:
        """See `LoadedText`."""
        return " ".join(html.unescape(html.unescape(prompt)).split())


def latent_size(frames: int, height: int, width: int, vae: Any) -> dict[str, int]:
    """Frames, height and width of the latents of a clip.

    Raises:
        UserError: the autoencoder, or the patches of 2×2, do not divide it.
    """
    config = vae.config if vae is not None else None
    temporal, spatial = (
        (TEMPORAL, SPATIAL) if config is None else (config.scale_factor_temporal, config.scale_factor_spatial)
    )
    if frames % temporal != 1 % temporal or height % (2 * spatial) or width % (2 * spatial):
        raise UserError(
            f"model.frames={frames}, model.height={height}, model.width={width}; allowed: {temporal} n + 1 frames of "
            f"multiples of {2 * spatial} pixels"
        )
    return {"frames": (frames - 1) // temporal + 1, "height": height // spatial, "width": width // spatial}


@dataclass(kw_only=True)
class Wan(TextModel):
    """Which checkpoint, and the size of its clips.

    Args:
        frames: of a clip.
        height, width: of a frame, in pixels.
    """

    transformer = "WanTransformer3DModel"
    autoencoder = "AutoencoderKLWan"
    loaded = LoadedWan
    encoders = {"text_encoder": "UMT5EncoderModel"}  # noqa: RUF012
    reading = "as given"

    frames: Annotated[int, Ge(1)]
    height: Annotated[int, Ge(1)]
    width: Annotated[int, Ge(1)]

    def protocol(self) -> str:
        """See `TextModel`."""
        return f"{super().protocol()}|size={self.frames}×{self.height}×{self.width}"

    def facts(self, vae: nn.Module | None) -> dict[str, int]:
        """See `TextModel`."""
        return latent_size(self.frames, self.height, self.width, vae)

    def check_config(self, file: Path, config: dict[str, Any]) -> None:
        """See `TextModel`."""
        keys = Keys(file, config)
        unquantized(keys)
        keys.whole("num_attention_heads", "attention_head_dim", "in_channels", "num_layers")
        keys.whole("text_dim", "freq_dim", "ffn_dim", "rope_max_seq_len")
        keys.expect("patch_size", lambda v: list(v) == [1, 2, 2], "[1, 2, 2]")
        keys.one_of("qk_norm", ("rms_norm_across_heads",), optional=True)
        keys.flag("cross_attn_norm")
        for key in ("image_dim", "added_kv_proj_dim"):
            keys.expect(key, lambda _: False, "null: image to video is not supported", optional=True)
        keys.finish()

    def check_autoencoder(self, folder: Path) -> None:
        """See `TextModel`."""
        config = read_config(folder)
        check_class(folder, config, (self.autoencoder,))
        keys = Keys(folder / "config.json", config)
        unquantized(keys)
        keys.whole("z_dim", "base_dim", "num_res_blocks")
        keys.expect("dim_mult", _whole_numbers, "a list of whole numbers")
        for key in ("latents_mean", "latents_std"):
            keys.expect(key, lambda v: _numbers(v, config.get("z_dim")), "a list of z_dim finite numbers")
        keys.finish()


def _numbers(value: Any, count: Any) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(number, value))


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 10 and all(whole(each) and each > 0 for each in value)
