"""Qwen-Image (Wu et al., arXiv 2508.02324): text to image by the language part of a Qwen2.5-VL.

All blocks have a stream for the image and one for the text, each with a modulation of its own. Latents are packed into
tokens of 2×2 inside `denoise`. A mask hides the rows behind a prompt's end; prompts stand inside the pipeline's
template, whose first tokens are cut off. Guidance takes two calls, and each token is brought to the norm of the
conditional prediction. What the last block makes of the text goes nowhere. Left out: images as conditions (Edit,
layers); networks that read the guidance.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Real, UInt8
from torch import Tensor
from torch.nn import functional

from qdit.model.checks import Keys, whole
from qdit.model.clips import numbers, whole_numbers
from qdit.model.files import autoencoder_keys
from qdit.model.flux import PATCH, LoadedPacked, PackedModel, packed, unpacked
from qdit.model.prompt_encoders import EncodedByStock, Rows


class LoadedQwenImage(EncodedByStock, LoadedPacked):
    """A Qwen-Image pipeline ready to run: see `qdit.model.base.DiffusionModel`."""

    names = ("encoder_hidden_states", "encoder_hidden_states_mask")
    guided = "two_calls_normed"
    guidance_word = "true_cfg_scale"
    tokens = 512

    def __init__(self, *parts: Any, **others: Any) -> None:
        super().__init__(*parts, **others)
        self._reading = {site.name for site in self._sites if site.role.startswith("text_")} | {"txt_in"}
        self._joint = {a.sites[o]: a.keys for a in self._attentions for o in ("q", "k", "v")}

    @staticmethod
    def one_sample(denoiser: Any, tokens: int, side: int = 128) -> Any:
        """Call a Qwen-Image on the meta device."""
        config, along = denoiser.config, side // PATCH
        x = torch.empty(1, along**2, config.in_channels, device="meta")
        text = torch.empty(1, tokens, config.joint_attention_dim, device="meta")
        mask = torch.ones(1, tokens, dtype=torch.long, device="meta")
        return denoiser(x, text, mask, torch.empty(1, device="meta"), img_shapes=[[(1, along, along)]])

    @classmethod
    def latents_of(cls, config: Any) -> tuple[int, int]:
        """See `Loaded`."""
        return config.z_dim, 2 ** len(config.temperal_downsample)

    def denoise(
        self, x: Float[Tensor, "B C h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C h w"]:
        """Call the network on x_t, times and numbers of prompts; the velocity, from data to noise."""
        rows, height, width = self.table.at(y, self.dtype), *(length // PATCH for length in x.shape[2:])
        with self.clock.showing(t):
            shapes = [[(1, height, width)]] * len(x)
            told = {"timestep": t / 1000, "img_shapes": shapes, "return_dict": False}
            return unpacked(self.denoiser(packed(x.to(self.dtype)), **rows, **told)[0], height)

    def attended(self, site: str, y: Int[Tensor, " B"]) -> Bool[Tensor, "B rows"] | None:
        """See `LoadedText`; in an attention the text's tokens are before those of the image."""
        if site not in self._joint:
            return super().attended(site, y)
        mask = self.table.rows["encoder_hidden_states_mask"].bool()
        mask = mask[y.to(mask.device)].to(y.device)
        return torch.cat([mask, mask.new_ones(len(mask), self._joint[site] - mask.shape[1])], 1)

    def normed(self, guided: Float[Tensor, "B C h w"], like: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """A guided prediction whose tokens have the norms of those of another one."""
        tokens = packed(guided)
        scale = packed(like).norm(dim=-1, keepdim=True) / tokens.norm(dim=-1, keepdim=True)
        return unpacked(tokens * scale, guided.shape[2] // PATCH)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C h w"]) -> UInt8[Tensor, "B 3 H W"]:
        """See `Loaded`; to the autoencoder an image is a clip of a frame; channels have a mean and a deviation."""
        own: Any = self.decoder
        mean, deviation = (
            torch.tensor(values, device=self.device, dtype=own.dtype).view(1, -1, 1, 1)
            for values in (own.config.latents_mean, own.config.latents_std)
        )
        clips = (latents.to(self.device, own.dtype) / (1.0 / deviation) + mean).unsqueeze(2)
        return self.pixels(own.decode(clips, return_dict=False)[0][:, :, 0], "images")

    @staticmethod
    def encode(pipe: Any, length: int, prompts: list[str]) -> Rows:
        """Qwen's rows, [n, length, width], zeros behind a prompt's end, and which are of the prompt, [n, length]."""
        rows, mask = pipe.encode_prompt(prompts, device=pipe.text_encoder.device, max_sequence_length=length)
        mask = torch.ones(rows.shape[:2], dtype=torch.long) if mask is None else mask.long()
        behind = length - rows.shape[1]
        text = functional.pad(rows.masked_fill(mask[..., None].to(rows.device) == 0, 0), (0, 0, 0, behind))
        return {"encoder_hidden_states": text, "encoder_hidden_states_mask": functional.pad(mask, (0, behind))}


@dataclass(kw_only=True)
class QwenImage(PackedModel):
    """Which checkpoint, and the size of its images; 512 tokens of a prompt are read."""

    transformer = "QwenImageTransformer2DModel"
    autoencoder = "AutoencoderKLQwenImage"
    pipeline = "QwenImagePipeline"
    loaded = LoadedQwenImage
    encoders = {"text_encoder": "Qwen2_5_VLForConditionalGeneration"}  # noqa: RUF012
    counts = ("joint_attention_dim",)

    def check_more(self, keys: Keys) -> None:
        """See `JointModel`."""
        keys.one_of("patch_size", (PATCH,))
        keys.one_of("guidance_embeds", (False,), optional=True)
        for key in ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
            keys.one_of(key, (False,), optional=True)
        if isinstance(channels := keys.values.get("in_channels"), int):
            keys.one_of("out_channels", (channels // PATCH**2,))
        keys.expect("axes_dims_rope", _widths, "a list of whole numbers", optional=True)

    def check_autoencoder(self, folder: Path) -> None:
        """See `TextModel`."""
        keys = autoencoder_keys(folder, self.autoencoder)
        keys.whole("z_dim", "base_dim", "num_res_blocks")
        keys.expect("dim_mult", whole_numbers, "a list of whole numbers")
        keys.expect(
            "temperal_downsample", lambda v: isinstance(v, list) and 0 < len(v) < 10, "a list of true and false"
        )
        for key in ("latents_mean", "latents_std"):
            keys.expect(key, lambda v: numbers(v, keys.values.get("z_dim")), "a list of z_dim finite numbers")
        keys.finish()


def _widths(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(whole, value))
