"""PixArt-α and PixArt-Σ (Chen et al., arXiv 2310.00426 and 2403.04692): text to image by cross-attention to a T5.

One projection of the timestep modulates all blocks (adaLN-single), so that no layer of a block can absorb a scale; the
values of both attentions can. α at 1024 px is also told resolution and aspect ratio, as its pipeline does when
`sample_size` is 128: at the native size, both of every sample. Left out: other sizes and aspect ratios than the native
one (the pipelines' resolution binning).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from qdit.errors import UserError
from qdit.model.loaded_text import LoadedText
from qdit.model.text import TextModel


class LoadedPixArt(LoadedText):
    """A PixArt pipeline ready to run: see `qdit.model.base.DiffusionModel`."""

    names = ("encoder_hidden_states", "encoder_attention_mask")
    projection = "caption_projection.linear_2"
    tokens = 300

    @staticmethod
    def one_sample(denoiser: Any, tokens: int) -> Any:
        """Call a PixArt on the meta device.

        Raises:
            UserError: it is told its size, and its width is no multiple of three.
        """
        config = denoiser.config
        width = config.num_attention_heads * config.attention_head_dim
        if denoiser.use_additional_conditions and width % 3:
            raise UserError(
                "the transformer's config.json: use_additional_conditions embeds height, width and aspect ratio in a "
                f"third of the channels each, and num_attention_heads × attention_head_dim are {width}"
            )
        x = torch.empty(1, config.in_channels, config.sample_size, config.sample_size, device="meta")
        text = torch.empty(1, tokens, config.caption_channels, device="meta")
        mask, zero = torch.ones(1, tokens, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
        told = added(denoiser, x, 8 * config.sample_size)
        return denoiser(x, text, timestep=zero, added_cond_kwargs=told, encoder_attention_mask=mask)

    def denoise(
        self, x: Float[Tensor, "B C h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B O h w"]:
        """Call the network on x_t, timesteps and numbers of prompts; noise, and the variance's logits."""
        told = added(self.denoiser, x, self.image_size)
        with self.clock.showing(t):
            rows = self.table.at(y, self.dtype)
            return self.denoiser(x.to(self.dtype), timestep=t, **rows, added_cond_kwargs=told, return_dict=False)[0]


@dataclass(kw_only=True)
class PixArt(TextModel):
    """Which checkpoint; α reads 120 tokens of a prompt, Σ 300."""

    transformer = "PixArtTransformer2DModel"
    legacy = ("Transformer2DModel",)
    loaded = LoadedPixArt


def added(denoiser: Any, x: Tensor, size: int) -> dict[str, Tensor | None]:
    """Resolution [B, 2] and aspect ratio [B, 1] of the native size, where the network is told them."""
    if not denoiser.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    like = {"device": x.device, "dtype": next(denoiser.parameters()).dtype}
    return {"resolution": torch.full((len(x), 2), float(size), **like), "aspect_ratio": torch.ones(len(x), 1, **like)}
