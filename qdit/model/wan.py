"""Wan 2.1 and 2.2 (Wan Team, arXiv 2503.20314): text to video by cross-attention to a UMT5; blocks see all frames.

One projection of the timestep modulates all blocks (adaLN-single), so that no layer of a block can absorb a scale; the
values of both attentions can, and the projection of the text for the keys and values of all blocks. Guidance takes two
calls. Prompts are unescaped and their spaces joined as the pipeline does. The network of 2.2 with 5 B parameters is
given a timestep for each token, which in text to video are all the same; that of 2.2 with two networks is in
`qdit.model.wan_a14b`. Left out: the repair of broken characters (ftfy); quantization of the time embedder; folds into
the gain of the norm before cross-attention's queries; and image to video, whose first image is encoded by the
autoencoder into further channels beside x_t and by a CLIP into further keys and values. It stands in the null condition
of guidance, too, so that each sample has a null condition of its own, and here all share one (`null_class`); and a data
set has prompts alone.
"""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.model.base import Attention, Guided, Site
from qdit.model.checks import Keys, unquantized
from qdit.model.clips import ClipModel, LoadedClips, numbers, whole_numbers
from qdit.model.files import autoencoder_keys, read_config


class LoadedWan(LoadedClips):
    """A Wan pipeline ready to run: see `qdit.model.base.DiffusionModel`; latents are [C, frames, h, w]."""

    usual = 21, 60, 104
    frames_per_second = 16
    guided: Guided = "two_calls"
    schedulers = ("UniPCMultistepScheduler",)
    projection = "condition_embedder.text_embedder.linear_2"
    tokens = 512

    def __init__(self, *parts: Any, token_times: int = 0, **others: Any) -> None:
        self.token_times = bool(token_times)
        super().__init__(*parts, **others)

    @property
    def facts(self) -> dict[str, int]:
        """See `Loaded`."""
        return super().facts | ({"token_times": 1} if self.token_times else {})

    @staticmethod
    def one_sample(denoiser: Any, tokens: int, *size: int) -> Any:
        """Call a Wan on the meta device; behind frames, height and width may stand that tokens have timesteps."""
        config, token_times = denoiser.config, len(size) > 3
        x = torch.empty(1, config.in_channels, *size[:3], device="meta")
        text = torch.empty(1, tokens, config.text_dim, device="meta")
        return denoiser(x, told(torch.zeros(1, dtype=torch.long, device="meta"), x, token_times), text)

    def structure(self, denoiser: nn.Module) -> tuple[list[Site], list[Attention]]:
        """See `Loaded`; not the time embedder, which the class keeps in float32 and asks for its weights' dtype."""
        sites, attentions = super().structure(denoiser)
        return [site for site in sites if ".time_embedder." not in site.name], attentions

    @classmethod
    def ratios(cls, config: Any) -> tuple[int, int]:
        """See `LoadedClips`."""
        return config.scale_factor_temporal, config.scale_factor_spatial

    @classmethod
    def latents_of(cls, config: Any) -> tuple[int, int]:
        """See `Loaded`."""
        return config.z_dim, config.scale_factor_spatial

    def denoise(
        self, x: Float[Tensor, "B C F h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C F h w"]:
        """Call the network on x_t, timesteps and numbers of prompts; the velocity, from data to noise."""
        with self.clock.showing(t):
            rows = self.table.at(y, self.dtype)
            times = told(t, x, self.token_times)
            return self.network_at(t)(x.to(self.dtype), timestep=times, **rows, return_dict=False)[0]

    def network_at(self, t: Real[Tensor, " B"]) -> Any:
        """The network that a call at some timesteps runs."""
        return self.denoiser

    @classmethod
    def made_by(cls, transformer: Any, pipe: Any) -> dict[str, int]:
        """See `LoadedClips`.

        Raises:
            UserError: the pipeline has two networks.
        """
        if pipe.config.get("boundary_ratio") is not None:
            raise UserError(
                "this pipeline has two transformers, each for its own timesteps, and one of them makes no samples "
                "alone; use qdit.run with model=wan_2_2_a14b"
            )
        return super().made_by(transformer, pipe) | token_times(pipe.config)

    def unscaled(self, latents: Float[Tensor, "1 C F h w"]) -> Float[Tensor, "1 C F h w"]:
        """See `LoadedClips`; each channel has a mean and a deviation."""
        mean, deviation = self.statistics()
        return latents / (1.0 / deviation) + mean

    @staticmethod
    def clean(prompt: str) -> str:
        """See `LoadedText`."""
        return " ".join(html.unescape(html.unescape(prompt)).split())


class LoadedWan22(LoadedWan):
    """Wan 2.2 with 5 B parameters, whose autoencoder makes a latent of 16×16 pixels."""

    usual = 31, 44, 80
    frames_per_second = 24
    compression = 4, 16


def told(t: Real[Tensor, " B"], x: Float[Tensor, "B C F h w"], each_token: bool) -> Real[Tensor, "B *tokens"]:
    """The timesteps that the network is given: one for each sample, or for each token of 2×2 latents."""
    if not each_token:
        return t
    tokens = x.shape[2] * (x.shape[3] // LoadedWan.patch) * (x.shape[4] // LoadedWan.patch)
    return t.float()[:, None].expand(-1, tokens)


def token_times(pipeline: Any) -> dict[str, int]:
    """Whether tokens have timesteps, as a fact, by the config of a pipeline."""
    return {"token_times": 1} if pipeline.get("expand_timesteps") else {}


@dataclass(kw_only=True)
class Wan(ClipModel):
    """Which checkpoint, and the size of its clips."""

    transformer = "WanTransformer3DModel"
    autoencoder = "AutoencoderKLWan"
    loaded = LoadedWan
    encoders = {"text_encoder": "UMT5EncoderModel"}  # noqa: RUF012
    token_times: ClassVar[bool] = False
    """Whether the network is given a timestep for each token (`expand_timesteps` of the pipeline)."""

    def facts(self, vae: nn.Module | None) -> dict[str, int]:
        """See `TextModel`."""
        return super().facts(vae) | ({"token_times": 1} if self.token_times else {})

    def boundary(self) -> float | None:
        """Where a second network takes over, as a share of the training's timesteps; None: there is one network."""
        return None

    def checked_transformer(self, root: Path) -> None:
        """See `TextModel`; also what the pipeline says of itself, where it is there.

        Raises:
            UserError: it has another number of networks, or timesteps of tokens where the option has those of samples.
        """
        if (root / "model_index.json").is_file():
            index = read_config(root, "model_index.json")
            if (found := index.get("boundary_ratio")) != self.boundary():
                raise UserError(
                    f"{root / 'model_index.json'} has boundary_ratio={'null' if found is None else found}; use "
                    "model=wan_2_2_a14b with this model.boundary_ratio for a pipeline of two transformers, "
                    "model=wan_2_1_1b or model=wan_2_2_5b for those of one"
                )
            if (found := bool(token_times(index))) != self.token_times:
                raise UserError(
                    f"{root / 'model_index.json'} has expand_timesteps={str(found).lower()}; use model=wan_2_2_5b for "
                    "a pipeline whose network is given a timestep for each token, model=wan_2_1_1b for others"
                )
        super().checked_transformer(root)

    def check_config(self, file: Path, config: dict[str, Any]) -> None:
        """See `TextModel`."""
        keys = Keys(file, config)
        unquantized(keys)
        keys.whole("num_attention_heads", "attention_head_dim", "num_layers")
        if keys.whole("in_channels"):
            out = config.get("out_channels")
            keys.expect("in_channels", lambda v: out in (None, v), f"{out}: image to video is not supported")
        keys.whole("text_dim", "freq_dim", "ffn_dim", "rope_max_seq_len")
        keys.expect("patch_size", lambda v: list(v) == [1, 2, 2], "[1, 2, 2]")
        keys.one_of("qk_norm", ("rms_norm_across_heads",), optional=True)
        keys.flag("cross_attn_norm")
        for key in ("image_dim", "added_kv_proj_dim"):
            keys.expect(key, lambda _: False, "null: image to video is not supported", optional=True)
        keys.finish()

    def check_autoencoder(self, folder: Path) -> None:
        """See `TextModel`."""
        keys = autoencoder_keys(folder, self.autoencoder)
        keys.whole("z_dim", "base_dim", "num_res_blocks")
        keys.expect("dim_mult", whole_numbers, "a list of whole numbers")
        for key in ("latents_mean", "latents_std"):
            keys.expect(key, lambda v: numbers(v, keys.values.get("z_dim")), "a list of z_dim finite numbers")
        keys.finish()


@dataclass(kw_only=True)
class Wan22(Wan):
    """Wan 2.2 with 5 B parameters, and the size of its clips."""

    loaded = LoadedWan22
    token_times = True
