"""LTX-Video (HaCohen et al., arXiv 2501.00103): text to video by cross-attention to a T5, on few and wide latents.

A latent stands for 8 frames of 32×32 pixels, and is a token. One projection of the timestep modulates all blocks
(adaLN-single), so that no layer of a block can absorb a scale; the values of both attentions can, and the projection of
the text for the keys and values of all blocks. A mask hides the rows behind a prompt's end; the T5 reads them. Rotary
embeddings are told the seconds that a frame stands for, at 25 frames a second, as the pipeline's call has them. Left
out: other frame rates; autoencoders that are told a timestep and add noise (0.9.1 and later); images as conditions; a
rescaled norm of guidance.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from qdit.model.checks import FLOW_SCHEDULERS, Keys, unquantized
from qdit.model.clips import ClipModel, LoadedClips, whole_numbers
from qdit.model.files import autoencoder_keys
from qdit.model.joint import shifted
from qdit.model.prompt_encoders import EncodedByStock, Rows

FRAMES_PER_SECOND = 25


class LoadedLTX(EncodedByStock, LoadedClips):
    """An LTX pipeline ready to run: see `qdit.model.base.DiffusionModel`; latents are [C, frames, h, w]."""

    names = ("encoder_hidden_states", "encoder_attention_mask")
    usual = 21, 16, 22
    frames_per_second = FRAMES_PER_SECOND
    compression = 8, 32
    patch = 1
    schedulers = FLOW_SCHEDULERS
    projection = "caption_projection.linear_2"
    tokens = 128

    @staticmethod
    def one_sample(denoiser: Any, tokens: int, *size: int) -> Any:
        """Call an LTX on the meta device."""
        config, (frames, height, width) = denoiser.config, size
        x = torch.empty(1, frames * height * width, config.in_channels, device="meta")
        text = torch.empty(1, tokens, config.caption_channels, device="meta")
        mask, zero = torch.ones(1, tokens, device="meta"), torch.zeros(1, device="meta")
        places = {"num_frames": frames, "height": height, "width": width, "rope_interpolation_scale": (0.32, 32, 32)}
        return denoiser(x, text, zero, mask, **places)

    @classmethod
    def ratios(cls, config: Any) -> tuple[int, int]:
        """See `LoadedClips`."""
        halved = 2 ** sum(config.spatio_temporal_scaling)
        return (
            config.temporal_compression_ratio or config.patch_size_t * halved,
            config.spatial_compression_ratio or config.patch_size * halved,
        )

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """See `Loaded`: evenly spaced noise levels, shifted by the number of tokens."""
        options = shifted(scheduler, self.frames * self.height * self.width, 1.15)
        scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps), **options)

    def denoise(
        self, x: Float[Tensor, "B C F h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C F h w"]:
        """Call the network on x_t, times and numbers of prompts; the velocity, from data to noise."""
        frames, height, width = x.shape[2:]
        temporal, spatial = self.compression if self.autoencoder is None else self.ratios(self.autoencoder.config)
        places: dict[str, Any] = {"num_frames": frames, "height": height, "width": width}
        places["rope_interpolation_scale"] = (temporal / FRAMES_PER_SECOND, spatial, spatial)
        with self.clock.showing(t):
            rows = self.table.at(y, self.dtype)
            tokens = x.to(self.dtype).flatten(2).mT
            output = self.denoiser(tokens, timestep=t, **rows, **places, return_dict=False)[0]
        return output.mT.unflatten(2, x.shape[2:])

    def unscaled(self, latents: Float[Tensor, "1 C F h w"]) -> Float[Tensor, "1 C F h w"]:
        """See `LoadedClips`; each channel has a mean and a deviation."""
        mean, deviation = self.statistics()
        return latents * deviation / self.decoder.config.scaling_factor + mean

    def statistics(self) -> tuple[Tensor, Tensor]:
        """See `LoadedClips`; they are among the weights."""
        own = self.decoder
        mean, deviation = (v.view(1, -1, 1, 1, 1).to(own.dtype) for v in (own.latents_mean, own.latents_std))
        return mean, deviation

    @staticmethod
    def encode(pipe: Any, length: int, prompts: list[str]) -> Rows:
        """The T5's rows, [n, length, width], zeros behind a prompt's end, and which are of the prompt, [n, length]."""
        options = {"max_sequence_length": length, "device": pipe.text_encoder.device}
        rows, mask, *_ = pipe.encode_prompt(prompts, None, False, **options)
        return {"encoder_hidden_states": rows.masked_fill(~mask[..., None], 0), "encoder_attention_mask": mask.long()}


@dataclass(kw_only=True)
class LTX(ClipModel):
    """Which checkpoint, and the size of its clips; 128 tokens of a prompt are read."""

    transformer = "LTXVideoTransformer3DModel"
    autoencoder = "AutoencoderKLLTXVideo"
    pipeline = "LTXPipeline"
    loaded = LoadedLTX

    def check_config(self, file: Path, config: dict[str, Any]) -> None:
        """See `TextModel`."""
        keys = Keys(file, config)
        unquantized(keys)
        keys.whole("num_attention_heads", "attention_head_dim", "num_layers", "cross_attention_dim", "caption_channels")
        if keys.whole("in_channels"):
            keys.one_of("out_channels", (config["in_channels"],), optional=True)
        for key in ("patch_size", "patch_size_t"):
            keys.one_of(key, (1,), optional=True)
        keys.one_of("qk_norm", ("rms_norm_across_heads",), optional=True)
        keys.flag("norm_elementwise_affine", "attention_bias", "attention_out_bias")
        keys.finish()

    def check_autoencoder(self, folder: Path) -> None:
        """See `TextModel`."""
        keys = autoencoder_keys(folder, self.autoencoder)
        keys.whole("latent_channels", "patch_size", "patch_size_t")
        keys.whole("spatial_compression_ratio", "temporal_compression_ratio", optional=True)
        keys.expect("block_out_channels", whole_numbers, "a list of whole numbers")
        keys.expect("spatio_temporal_scaling", _flags, "a list of true and false")
        keys.positive("scaling_factor")
        reason = "an autoencoder that is told a timestep (LTX-Video 0.9.1 and later) is not supported"
        keys.expect("timestep_conditioning", lambda v: v is False, f"false: {reason}", optional=True)
        keys.finish()


def _flags(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 10 and all(isinstance(each, bool) for each in value)
