"""FLUX.2 [klein] (Black Forest Labs 2026; no paper): text to image by three layers of a Qwen3, side by side.

Double blocks have a stream for the image and one for the text, single blocks join them, as FLUX.1's do, and latents are
packed as there. What differs: linear layers have no biases; one projection of the timestep modulates all blocks of a
kind; feed-forwards are gated; a single block begins with one layer for queries, keys, values and feed-forward. All rows
of the text are read, those behind a prompt's end too. Distilled networks take 4 steps without guidance, the others
(klein-base) the negative prompt in a second call. Latents have a mean and a deviation, which the autoencoder's batch
norm holds. Left out: folds into the two parts of the input that closes a single block; images as conditions; encoding
prompts for FLUX.2 [dev], whose network, which reads the guidance, is quantized as it is.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Real, UInt8
from torch import Tensor, nn
from torch.nn import functional

from qdit.errors import UserError
from qdit.model.base import Attention, Fold, Site, Source
from qdit.model.checks import Keys, check_autoencoder, number, whole
from qdit.model.files import autoencoder_keys
from qdit.model.flux import PATCH, LoadedPacked, PackedModel, on_meta, packed, places, unpacked, with_parts
from qdit.model.prompt_encoders import Encoder, Rows, StockEncoder

AXES = 4
"""Coordinates of a token: image, row, column, and place in the text."""


class LoadedFlux2(LoadedPacked):
    """A FLUX.2 pipeline ready to run: see `qdit.model.base.DiffusionModel`."""

    tokens = 512

    def __init__(self, denoiser: nn.Module, *parts: Any, **text: Any) -> None:
        config: Any = denoiser.config
        self.guided = "embedded" if config.guidance_embeds else "two_calls"
        self.told_guidance = 4.0
        super().__init__(denoiser, *parts, **text)

    @staticmethod
    def one_sample(denoiser: Any, tokens: int, side: int = 128) -> Any:
        """Call a FLUX.2 on the meta device."""
        return on_meta(denoiser, tokens, side, AXES)

    def structure(self, denoiser: nn.Module) -> tuple[list[Site], list[Attention]]:
        """See `Loaded`; feed-forwards are gated, and what closes a single block reads one beside an attention."""
        sites, attentions = super().structure(denoiser)
        return with_parts(sites, denoiser, gated=("ffn_down", "text_down", "parallel_out")), attentions

    def list_folds(self, sites: list[Site]) -> list[Fold]:
        """The values' folds, that of the last norm's modulation, and those of gated feed-forwards."""
        return super().list_folds(sites) + gated_folds(sites)

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """See `Loaded`: evenly spaced noise levels, shifted by the image's size and the number of steps."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        shift = compute_empirical_mu((self.side // PATCH) ** 2, steps)
        scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)

    def denoise(
        self, x: Float[Tensor, "B C h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C h w"]:
        """Call the network on x_t, times and numbers of prompts; the velocity, from data to noise."""
        rows, height = self.table.at(y, self.dtype), x.shape[2] // PATCH
        told = coordinates(height, x.shape[3] // PATCH, rows["encoder_hidden_states"].shape[1])
        told = {key: ids.to(x.device) for key, ids in told.items()}
        if self.guided == "embedded":
            told["guidance"] = torch.full((len(x),), self.told_guidance, device=x.device)
        with self.clock.showing(t):
            output = self.denoiser(packed(x.to(self.dtype)), timestep=t / 1000, **rows, **told, return_dict=False)[0]
        return unpacked(output, height)

    def natural(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Sampled latents as the autoencoder reads them: each channel of a token has a mean and a deviation.

        Raises:
            UserError: the transformer came without its pipeline.
        """
        norm, epsilon = self.decoder.bn, self.decoder.config.batch_norm_eps
        mean, deviation = (v.to(latents) for v in (norm.running_mean, torch.sqrt(norm.running_var + epsilon)))
        return unpacked(packed(latents) * deviation + mean, latents.shape[2] // PATCH)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C h w"]) -> UInt8[Tensor, "B 3 H W"]:
        """See `Loaded`."""
        own: Any = self.decoder
        return self.pixels(own.decode(self.natural(latents.to(self.device, own.dtype)), return_dict=False)[0], "images")

    @classmethod
    def encoder_of(cls, pipe: Any, length: int) -> Encoder:
        """What encodes prompts as the stock pipeline does.

        Raises:
            UserError: it is not FLUX.2 [klein]'s, or its tokenizer has no template of a conversation.
        """
        if type(pipe).__name__ == "Flux2Pipeline":
            raise UserError(
                "a Flux2Pipeline (FLUX.2 [dev]) reads prompts by a Mistral 3, which is not supported; allowed: a "
                "Flux2KleinPipeline, or qdit.quantize of pipe.transformer with calibration data of your own"
            )
        if getattr(pipe.tokenizer, "chat_template", None) is None:
            raise UserError(
                "the tokenizer has no chat_template, which FLUX.2 [klein] shows its prompts in; allowed: the "
                "pipeline's own tokenizer/, with its chat_template.jinja: copy or download it again"
            )
        return StockEncoder(partial(encode, pipe, length), partial(asked, pipe.tokenizer), length)


def encode(pipe: Any, length: int, prompts: list[str]) -> Rows:
    """Rows of three of the Qwen3's layers side by side, [n, length, 3 * width], also of what pads a prompt."""
    rows, _ = pipe.encode_prompt(prompts, device=pipe.text_encoder.device, max_sequence_length=length)
    return {"encoder_hidden_states": rows}


def asked(tokenizer: Any, prompts: list[str]) -> Any:
    """The tokens of prompts as the pipeline asks for them: each is a conversation, and nothing is cut."""
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return tokenizer([tokenizer.apply_chat_template(turn, **options) for turn in turns])


def coordinates(rows: int, columns: int, words: int) -> dict[str, Float[Tensor, "tokens 4"]]:
    """By keyword, (0, row, column, 0) of each token of an image, and (0, 0, 0, place) of each of a text."""
    text = functional.pad(torch.arange(float(words))[:, None], (AXES - 1, 0))
    return {"img_ids": functional.pad(places(rows, columns), (0, AXES - 3)), "txt_ids": text}


def gated_folds(sites: list[Site]) -> list[Fold]:
    """The folds of what closes a gated feed-forward into the second half of what opens it, which has no activation."""
    return [
        Fold((Source(site.name.replace("linear_out", "linear_in"), (site.in_features,)),), (site.name,), shifts=False)
        for site in sites
        if site.name.endswith(".linear_out")
    ]


@dataclass(kw_only=True)
class Flux2Klein(PackedModel):
    """Which checkpoint, and the size of its images; 512 tokens are read of a prompt and the template around it."""

    transformer = "Flux2Transformer2DModel"
    autoencoder = "AutoencoderKLFlux2"
    pipeline = "Flux2KleinPipeline"
    loaded = LoadedFlux2
    encoders = {"text_encoder": "Qwen3ForCausalLM"}  # noqa: RUF012
    counts = ("num_single_layers", "joint_attention_dim", "timestep_guidance_channels")

    def check_more(self, keys: Keys) -> None:
        """See `JointModel`."""
        keys.one_of("patch_size", (1,))
        keys.one_of("guidance_embeds", (False,))  # the pipeline tells no scale
        channels, width = keys.values.get("in_channels"), keys.values.get("attention_head_dim")
        keys.expect("in_channels", lambda v: whole(v) and v % PATCH**2 == 0, f"a multiple of {PATCH**2}")
        keys.one_of("out_channels", (channels,), optional=True)
        keys.positive("mlp_ratio", "rope_theta", "eps", optional=True)
        keys.expect("axes_dims_rope", lambda v: _axes(v, width), f"{AXES} even numbers whose sum is attention_head_dim")

    def check_autoencoder(self, folder: Path) -> None:
        """See `TextModel`."""
        keys = autoencoder_keys(folder, self.autoencoder)
        check_autoencoder(keys.file, keys.values)
        keys.positive("batch_norm_eps")
        keys.expect("patch_size", lambda v: v == [PATCH, PATCH], f"[{PATCH}, {PATCH}]", optional=True)
        keys.finish()


def _axes(value: Any, width: Any) -> bool:
    even = isinstance(value, list | tuple) and all(whole(v) and number(v) and v % 2 == 0 for v in value)
    return even and len(value) == AXES and sum(value) == width
