"""HunyuanVideo (Kong et al., arXiv 2412.03603): text to video by a Llama and the pooled vector of a CLIP.

Double blocks have a stream for the video and one for the text, single blocks join them, as FLUX's do; a small
transformer (the refiner) reads the text first. A mask hides the rows behind a prompt's end, so that nothing depends on
them. The network reads the scale of guidance, in thousandths. In single blocks attention and feed-forward read equal
rows in two tensors, which are one input here. The Llama is shown a prompt inside the pipeline's template, whose tokens
are cut off. Left out: image to video; a negative prompt in a second call (`true_cfg_scale`); tiled decoding; folds into
the two parts of the input that closes a single block.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor, nn

from qdit.model.base import Attention, Fold, Site
from qdit.model.checks import FLOW_SCHEDULERS, Keys, unquantized, whole
from qdit.model.clips import ClipModel, LoadedClips, whole_numbers
from qdit.model.files import autoencoder_keys
from qdit.model.joint import modulation_folds
from qdit.model.prompt_encoders import EncodedByStock, Rows


class LoadedHunyuanVideo(EncodedByStock, LoadedClips):
    """A HunyuanVideo pipeline ready to run: see `qdit.model.base.DiffusionModel`; latents are [C, frames, h, w]."""

    names = ("encoder_hidden_states", "encoder_attention_mask")
    usual = 33, 90, 160
    frames_per_second = 15
    schedulers = FLOW_SCHEDULERS
    guided = "embedded"
    tokens = 256

    def __init__(self, *parts: Any, **others: Any) -> None:
        super().__init__(*parts, **others)
        self.told_guidance = 6.0
        self._rows = {site.name: site.tokens for site in self._sites}
        self._rows |= {a.sites[o]: a.keys for a in self._attentions for o in ("q", "k", "v")}

    @staticmethod
    def one_sample(denoiser: Any, tokens: int, *size: int) -> Any:
        """Call a HunyuanVideo on the meta device."""
        config, one = denoiser.config, torch.empty(1, device="meta")
        x = torch.empty(1, config.in_channels, *size, device="meta")
        text = torch.empty(1, tokens, config.text_embed_dim, device="meta")
        mask = torch.ones(1, tokens, dtype=torch.long, device="meta")
        return denoiser(x, one, text, mask, torch.empty(1, config.pooled_projection_dim, device="meta"), one)

    def structure(self, denoiser: nn.Module) -> tuple[list[Site], list[Attention]]:
        """See `Loaded`; a single block's two tensors of equal rows are one input, what closes it reads two."""
        sites, attentions = super().structure(denoiser)
        config: Any = denoiser.config
        width, wide = config.num_attention_heads * config.attention_head_dim, {site.name for site in sites}
        for n, site in enumerate(sites):
            if site.role == "parallel_out":
                sites[n] = replace(site, second=width)
            elif site.role == "qkv" and (first := f"{site.path}.proj_mlp") in wide:
                sites[n] = replace(site, reads=first)
        return sites, attentions

    def list_folds(self, sites: list[Site]) -> list[Fold]:
        """The values' folds, and those of modulations into what reads the modulated norms."""
        return super().list_folds(sites) + modulation_folds(sites)

    def attended(self, site: str, y: Int[Tensor, " B"]) -> Bool[Tensor, "B rows"] | None:
        """See `LoadedText`; the text's rows are alone, or behind those of the video."""
        rows, mask = self._rows.get(site, 0), self.table.rows["encoder_attention_mask"].bool()
        before = rows - mask.shape[1]
        if before < 0 or rows == self._video:
            return None
        mask = mask[y.to(mask.device)].to(y.device)
        return torch.cat([mask.new_ones(len(mask), before), mask], 1)

    @property
    def _video(self) -> int:
        """Tokens of a clip."""
        return self.frames * (self.height // self.patch) * (self.width // self.patch)

    @classmethod
    def ratios(cls, config: Any) -> tuple[int, int]:
        """See `LoadedClips`."""
        return config.temporal_compression_ratio, config.spatial_compression_ratio

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """See `Loaded`: evenly spaced noise levels down to none, which the scheduler shifts."""
        scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])

    def denoise(
        self, x: Float[Tensor, "B C F h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C F h w"]:
        """Call the network on x_t, times and numbers of prompts; the velocity, from data to noise."""
        guidance = torch.full((len(x),), self.told_guidance, dtype=self.dtype, device=x.device) * 1000.0
        with self.clock.showing(t):
            rows = self.table.at(y, self.dtype)
            return self.denoiser(x.to(self.dtype), timestep=t, **rows, guidance=guidance, return_dict=False)[0]

    @staticmethod
    def encode(pipe: Any, length: int, prompts: list[str]) -> Rows:
        """The Llama's rows, [n, length, width], zeros behind a prompt's end, which are its own, and the CLIP's."""
        options = {"max_sequence_length": length, "device": pipe.text_encoder.device}
        rows, pooled, mask = pipe.encode_prompt(prompts, **options)
        text = rows.masked_fill(mask[..., None] == 0, 0)
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask.long(), "pooled_projections": pooled}


@dataclass(kw_only=True)
class HunyuanVideo(ClipModel):
    """Which checkpoint, and the size of its clips; 256 tokens of a prompt are read behind the template."""

    transformer = "HunyuanVideoTransformer3DModel"
    autoencoder = "AutoencoderKLHunyuanVideo"
    pipeline = "HunyuanVideoPipeline"
    loaded = LoadedHunyuanVideo
    encoders = {"text_encoder": "LlamaModel", "text_encoder_2": "CLIPTextModel"}  # noqa: RUF012

    def check_config(self, file: Path, config: dict[str, Any]) -> None:
        """See `TextModel`."""
        keys = Keys(file, config)
        unquantized(keys)
        keys.whole("num_attention_heads", "attention_head_dim", "num_layers", "num_single_layers", "num_refiner_layers")
        keys.whole("text_embed_dim", "pooled_projection_dim")
        if keys.whole("in_channels"):
            keys.one_of("out_channels", (config["in_channels"],), optional=True)
        keys.one_of("patch_size", (2,))
        keys.one_of("patch_size_t", (1,))
        keys.one_of("qk_norm", ("rms_norm",), optional=True)
        keys.one_of("guidance_embeds", (True,))
        keys.expect("rope_axes_dim", lambda v: isinstance(v, list) and all(map(whole, v)), "a list of whole numbers")
        keys.expect("image_condition_type", lambda _: False, "null: image to video is not supported", optional=True)
        keys.finish()

    def check_autoencoder(self, folder: Path) -> None:
        """See `TextModel`."""
        keys = autoencoder_keys(folder, self.autoencoder)
        keys.whole("latent_channels", "layers_per_block", "norm_num_groups")
        keys.whole("spatial_compression_ratio", "temporal_compression_ratio")
        keys.expect("block_out_channels", whole_numbers, "a list of whole numbers")
        keys.positive("scaling_factor")
        keys.finish()
