"""Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206): text to image by two CLIPs and a T5.

The text's rows are those of both CLIPs, side by side and padded with zeros to the T5's width, and then the T5's; the
CLIPs' pooled vectors modulate all blocks beside the timestep. The last block has no text behind its attention; some
blocks of 3.5-medium have a second attention, of the image alone. Left out: pipelines without the T5, skipped layers
as a guidance of their own, images of other sizes than the native one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from qdit.model.checks import Keys, whole
from qdit.model.joint import CLIP_LENGTH, JointModel, LoadedJoint, shifted
from qdit.model.prompt_encoders import EncodedByStock, Rows

CLIP = "CLIPTextModelWithProjection"


class LoadedSD3(EncodedByStock, LoadedJoint):
    """An SD3 pipeline ready to run: see `qdit.model.base.DiffusionModel`."""

    tokenizer = "tokenizer_3"
    tokens = 256

    @staticmethod
    def one_sample(denoiser: Any, tokens: int) -> Any:
        """Call an SD3 on the meta device."""
        config = denoiser.config
        x = torch.empty(1, config.in_channels, config.sample_size, config.sample_size, device="meta")
        text = torch.empty(1, CLIP_LENGTH + tokens, config.joint_attention_dim, device="meta")
        return denoiser(
            x, text, torch.empty(1, config.pooled_projection_dim, device="meta"), torch.empty(1, device="meta")
        )

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """See `Loaded`: the scheduler's own times, shifted once more than FLUX's."""
        config: Any = self.denoiser.config
        scheduler.set_timesteps(steps, **shifted(scheduler, (config.sample_size // config.patch_size) ** 2, 1.16))

    def denoise(
        self, x: Float[Tensor, "B C h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C h w"]:
        """Call the network on x_t, times and numbers of prompts; the velocity, from data to noise."""
        with self.clock.showing(t):
            return self.denoiser(x.to(self.dtype), timestep=t, **self.table.at(y, self.dtype), return_dict=False)[0]

    @staticmethod
    def encode(pipe: Any, length: int, prompts: list[str]) -> Rows:
        """The rows of both CLIPs and of the T5, [n, 77 + length, width], and the CLIPs' pooled vectors, [n, width]."""
        texts = dict.fromkeys(("prompt", "prompt_2", "prompt_3"), prompts)
        options = {"max_sequence_length": length, "device": pipe.text_encoder.device}
        rows, _, pooled, _ = pipe.encode_prompt(**texts, do_classifier_free_guidance=False, **options)
        return {"encoder_hidden_states": rows, "pooled_projections": pooled}


@dataclass(kw_only=True)
class SD3(JointModel):
    """Which checkpoint; `text_length` is the T5's, 256."""

    transformer = "SD3Transformer2DModel"
    pipeline = "StableDiffusion3Pipeline"
    loaded = LoadedSD3
    encoders = {"text_encoder": CLIP, "text_encoder_2": CLIP, "text_encoder_3": "T5EncoderModel"}  # noqa: RUF012
    counts = ("sample_size", "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim")

    def check_more(self, keys: Keys) -> None:
        """See `JointModel`."""
        keys.whole("pos_embed_max_size")
        keys.one_of("qk_norm", ("rms_norm",), optional=True)
        keys.expect("dual_attention_layers", _numbers, "a list of numbers of layers", optional=True)
        if isinstance(channels := keys.values.get("in_channels"), int):
            keys.one_of("out_channels", (channels,), optional=True)
        side, patch = (keys.values.get(key) for key in ("sample_size", "patch_size"))
        if whole(side) and whole(patch) and patch and side % patch:
            keys.problems.append(f"{keys.file}: sample_size={side} is not a multiple of patch_size={patch}")


def _numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(whole(each) and each >= 0 for each in value)
