"""Latte (Ma et al., arXiv 2401.03048): text to video, blocks over the places of a frame and over the frames in turn.

Spatial blocks see a batch of all frames, temporal ones a batch of all places; both are sample-major, so that a timestep
counts for each of a sample's rows. The text takes part without a mask: rows behind a prompt's end are zeros, as the
pipeline makes them for several prompts (a single one it cuts instead, so that there a condition depends on the batch;
qdit does what it does for several); behind the negative prompt's end they are what the encoder made of the padding. One
projection of the timestep modulates all blocks, as PixArt's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from qdit.checked import NEWER
from qdit.model.loaded_text import LoadedText
from qdit.model.prompt_encoders import T5, Encoder, Rows
from qdit.model.text import TextModel


class LatteT5(T5):
    """T5 as Latte's pipeline reads it: a negative prompt is not masked."""

    def negative(self, prompts: Sequence[str]) -> Rows:
        """See `Encoder`: of negative prompts."""
        return self.rows(prompts, masked=False)


class LoadedLatte(LoadedText):
    """A Latte pipeline ready to run: see `qdit.model.base.DiffusionModel`; latents are [C, frames, h, w]."""

    modality = "video"
    negative_apart = True
    projection = "caption_projection.linear_2"

    def __init__(self, denoiser: nn.Module, *parts: Any, **text: Any) -> None:
        config: Any = denoiser.config
        self.frames: int = config.video_length
        super().__init__(denoiser, *parts, **text)

    @classmethod
    def encoder_of(cls, pipe: Any, length: int) -> Encoder:
        """See `LoadedText`."""
        return LatteT5(pipe.tokenizer, pipe.text_encoder, length, cls.names, cls.clean)

    @classmethod
    def adapt(cls, transformer: Any, pipe: Any = None, text_length: int | None = None, **facts: int) -> Self:
        """See `LoadedText`; a tokenizer of fewer tokens says how many: no mask hides what fills up the rest."""
        own = getattr(pipe, "tokenizer", None)
        if text_length is None and own is not None:
            text_length = min(cls.tokens, own.model_max_length)
        return super().adapt(transformer, pipe, text_length, **facts)

    def shape_of(self, config: Any) -> tuple[int, ...]:
        """See `Loaded`: [C, frames, h, w]."""
        return config.in_channels, config.video_length, config.sample_size, config.sample_size

    @staticmethod
    def one_sample(denoiser: Any, tokens: int) -> Any:
        """Call a Latte on the meta device."""
        config = denoiser.config
        shape = 1, config.in_channels, config.video_length, config.sample_size, config.sample_size
        text = torch.empty(1, tokens, config.caption_channels, device="meta")
        zero = torch.zeros(1, dtype=torch.long, device="meta")
        return denoiser(torch.empty(*shape, device="meta"), timestep=zero, encoder_hidden_states=text)

    def denoise(
        self, x: Float[Tensor, "B C F h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B O F h w"]:
        """Call the network on x_t, timesteps and numbers of prompts; noise, and the variance's logits."""
        with self.clock.showing(t):
            rows = self.table.at(y, self.dtype)
            return self.denoiser(x.to(self.dtype), timestep=t, **rows, return_dict=False)[0]


@dataclass(kw_only=True)
class Latte(TextModel):
    """Which checkpoint; 120 tokens of a prompt are read.

    Args:
        mask_negative: whether rows behind the end of the negative prompt are zeros, which they are not in the stock
            pipeline: as they were here before that was seen, for runs of that time.
    """

    transformer = "LatteTransformer3DModel"
    loaded = LoadedLatte
    counts = ("caption_channels", "video_length")
    mask_negative: bool = field(default=True, metadata=NEWER)

    @property
    def negative_apart(self) -> bool:
        """See `TextModel`."""
        return not self.mask_negative

    def protocol(self) -> str:
        """See `TextModel`."""
        return super().protocol() + ("" if self.mask_negative else ", negative unmasked")
