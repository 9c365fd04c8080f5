"""Latte (Ma et al., arXiv 2401.03048): text to video, blocks over the places of a frame and over the frames in turn.

Spatial blocks see a batch of all frames, temporal ones a batch of all places; both are sample-major, so that a timestep
counts for each of a sample's rows. The text takes part without a mask: rows behind a prompt's end are zeros, as the
pipeline makes them for several prompts (a single one it cuts instead, so that there a condition depends on the batch;
qdit does what it does for several). One projection of the timestep modulates all blocks, as PixArt's.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qdit.model.base import Attention, Site
from qdit.model.conditions import Conditions
from qdit.model.derive import structure
from qdit.model.text import LoadedText, TextModel


@dataclass(kw_only=True)
class Latte(TextModel):
    """Which checkpoint; 120 tokens of a prompt are read."""

    names = ("encoder_hidden_states", None)
    transformer = "LatteTransformer3DModel"
    counts = ("caption_channels", "video_length")

    def load(self, device: str | torch.device, dtype: torch.dtype, table: Conditions | None = None) -> "LoadedLatte":
        """Read the checkpoint, check it, and move it to `device`; see `TextModel.parts`."""
        denoiser, vae, schedule = self.parts(dtype)
        return LoadedLatte(
            denoiser.to(device),
            vae.to(device),
            schedule,
            torch.device(device),
            dtype,
            table=table,
            text_length=self.text_length,
        )


class LoadedLatte(LoadedText):
    """A Latte pipeline ready to run: see `qdit.model.base.DiffusionModel`; latents are [C, frames, h, w]."""

    modality = "video"

    def __init__(self, denoiser: nn.Module, *parts: Any, **text: Any) -> None:
        super().__init__(denoiser, *parts, **text)
        config: Any = denoiser.config
        self.frames: int = config.video_length
        self.latent_shape = (config.in_channels, self.frames, config.sample_size, config.sample_size)

    def structure(self, denoiser: nn.Module) -> tuple[list[Site], list[Attention]]:
        """Derive the sites and attentions."""
        return structure(denoiser, OneSample(self.text_length))

    def denoise(
        self, x: Float[Tensor, "B C F h w"], t: Int[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B O F h w"]:
        """Call the network on x_t, timesteps and numbers of prompts; noise, and the variance's logits."""
        with self.clock.showing(t):
            rows = self.table.at(y, self.dtype)
            return self.denoiser(x.to(self.dtype), timestep=t, **rows, return_dict=False)[0]


@dataclass(frozen=True)
class OneSample:
    """One sample with a prompt of so many tokens."""

    tokens: int

    def __call__(self, denoiser: nn.Module) -> Any:
        """Call a Latte on the meta device."""
        config: Any = denoiser.config
        shape = 1, config.in_channels, config.video_length, config.sample_size, config.sample_size
        text = torch.empty(1, self.tokens, config.caption_channels, device="meta")
        zero = torch.zeros(1, dtype=torch.long, device="meta")
        return denoiser(torch.empty(*shape, device="meta"), timestep=zero, encoder_hidden_states=text)
