"""Sana (Xie et al., arXiv 2410.10629): text to image by cross-attention to a Gemma 2, on latents of 32×32 pixels.

Self-attentions are linear: without a softmax there are no probabilities, and their operands are no sites. Feed-forwards
are convolutions: two of 1×1, which are sites as linear layers are, with a depthwise one between. One projection of the
timestep modulates all blocks (adaLN-single), so that no layer of a block can absorb a scale; the values of both kinds
of attention can. Prompts stand behind an instruction that the pipeline brings, the negative prompt does not; a mask
hides the rows behind a prompt's end. Left out: folds into the gain of the norm behind the text's projection and
through the depthwise convolution; other sizes than the native one; networks that read the guidance (Sana Sprint).
"""

import inspect
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from qdit.model.base import Attention, Fold, Site, Source
from qdit.model.checks import Keys, number, unquantized
from qdit.model.clips import whole_numbers
from qdit.model.files import autoencoder_keys
from qdit.model.loaded_text import LoadedText
from qdit.model.prompt_encoders import Encoder, Rows, StockEncoder
from qdit.model.text import TextModel


class LoadedSana(LoadedText):
    """A Sana pipeline ready to run: see `qdit.model.base.DiffusionModel`."""

    names = ("encoder_hidden_states", "encoder_attention_mask")
    schedulers = ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
    latent_scale = 32
    tokens = 300
    negative_apart = True

    def __init__(self, denoiser: nn.Module, *parts: Any, **text: Any) -> None:
        config: Any = denoiser.config
        self.scale: float = config.get("timestep_scale") or 1.0
        self.time_unit = 1 / self.scale
        super().__init__(denoiser, *parts, **text)

    @staticmethod
    def one_sample(denoiser: Any, tokens: int) -> Any:
        """Call a Sana on the meta device."""
        config = denoiser.config
        x = torch.empty(1, config.in_channels, config.sample_size, config.sample_size, device="meta")
        text = torch.empty(1, tokens, config.caption_channels, device="meta")
        mask = torch.ones(1, tokens, device="meta")
        return denoiser(x, text, timestep=torch.zeros(1, device="meta"), encoder_attention_mask=mask)

    def structure(self, denoiser: nn.Module) -> tuple[list[Site], list[Attention]]:
        """See `Loaded`; feed-forwards are gated."""
        sites, attentions = super().structure(denoiser)
        return [replace(site, gated=site.role == "ffn_down") for site in sites], attentions

    def list_folds(self, sites: list[Site]) -> list[Fold]:
        """The values' folds, of linear attentions too: their outputs are linear in the values, channel by channel."""
        config: Any = self.denoiser.config
        names = {site.name for site in sites}
        linear = [name.removesuffix(".to_v") for name in sorted(names) if name.endswith(".attn1.to_v")]
        folds = [
            Fold((Source(f"{name}.to_v", (0,)),), (f"{name}.to_out.0",), config.attention_head_dim) for name in linear
        ]
        order = [site.name for site in sites]
        return sorted(super().list_folds(sites) + folds, key=lambda fold: order.index(fold.readers[0]))

    @classmethod
    def latents_of(cls, config: Any) -> tuple[int, int]:
        """See `Loaded`."""
        return config.latent_channels, 2 ** (len(config.encoder_block_out_channels) - 1)

    def denoise(
        self, x: Float[Tensor, "B C h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C h w"]:
        """Call the network on x_t, timesteps and numbers of prompts; the velocity, from data to noise."""
        with self.clock.showing(t):
            rows = self.table.at(y, self.dtype)
            return self.denoiser(x.to(self.dtype), timestep=t * self.scale, **rows, return_dict=False)[0]

    @classmethod
    def encoder_of(cls, pipe: Any, length: int) -> Encoder:
        """What encodes prompts as the stock pipeline does."""
        told = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
        return StockEncoder(
            partial(encode, pipe, length, told), pipe.tokenizer, length, negative=partial(encode, pipe, length, None)
        )


def encode(pipe: Any, length: int, instruction: list[str] | None, prompts: list[str]) -> Rows:
    """Gemma's rows, [n, length, width], zeros behind a prompt's end, and which are of the prompt, [n, length]."""
    options = {"max_sequence_length": length, "device": pipe.text_encoder.device}
    rows, mask, *_ = pipe.encode_prompt(prompts, False, complex_human_instruction=instruction, **options)
    return {"encoder_hidden_states": rows.masked_fill(mask[..., None] == 0, 0), "encoder_attention_mask": mask.long()}


@dataclass(kw_only=True)
class Sana(TextModel):
    """Which checkpoint; 300 tokens of a prompt are read, the first and the last of those behind the instruction."""

    transformer = "SanaTransformer2DModel"
    autoencoder = "AutoencoderDC"
    pipeline = "SanaPipeline"
    loaded = LoadedSana
    encoders = {"text_encoder": "Gemma2Model"}  # noqa: RUF012

    def check_config(self, file: Path, config: dict[str, Any]) -> None:
        """See `TextModel`."""
        keys = Keys(file, config)
        unquantized(keys)
        keys.whole("num_attention_heads", "attention_head_dim", "num_layers", "caption_channels", "cross_attention_dim")
        keys.whole("num_cross_attention_heads", "cross_attention_head_dim", "sample_size")
        keys.one_of("patch_size", (1,))
        if keys.whole("in_channels"):
            keys.one_of("out_channels", (config["in_channels"],), optional=True)
        keys.positive("mlp_ratio", "timestep_scale", optional=True)
        keys.one_of("guidance_embeds", (False,), optional=True)
        keys.expect("interpolation_scale", number, "a finite number", optional=True)
        keys.finish()

    def check_autoencoder(self, folder: Path) -> None:
        """See `TextModel`."""
        keys = autoencoder_keys(folder, self.autoencoder)
        keys.whole("latent_channels")
        for key in ("encoder_block_out_channels", "decoder_block_out_channels"):
            keys.expect(key, whole_numbers, "a list of whole numbers")
        keys.positive("scaling_factor")
        keys.finish()
