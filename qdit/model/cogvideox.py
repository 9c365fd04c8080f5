"""CogVideoX 2b and 5b (Yang et al., arXiv 2408.06072): text to video by one attention over the text and all frames.

Image and text share all weights of a block, and each is modulated by its own half of `norm1.linear` and of
`norm2.linear`, so that a factor goes into both halves. Every token of the text takes part, pads too, as the T5 made
them. 2b adds sinusoidal places to the tokens, 5b turns queries and keys (rotary embeddings). Networks predict v
(Salimans & Ho, arXiv 2202.00512) on a schedule of betas whose signal-to-noise ratio is shifted. The pipeline has frames
before channels; qdit has them behind, and turns them in `denoise`. Left out: CogVideoX 1.5, whose patches reach over
two frames; image to video; guidance that changes over time.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.model.base import Fold, Site, Source, readers_of_inputs
from qdit.model.checks import COGVIDEOX_SCHEDULERS, Keys, unquantized
from qdit.model.clips import ClipModel, LoadedClips, whole_numbers
from qdit.model.files import autoencoder_keys
from qdit.model.prompt_encoders import EncodedByStock, Rows


class LoadedCogVideoX(EncodedByStock, LoadedClips):
    """A CogVideoX pipeline ready to run: see `qdit.model.base.DiffusionModel`; latents are [C, frames, h, w]."""

    usual = 13, 60, 90
    schedulers = COGVIDEOX_SCHEDULERS
    tokens = 226

    def __init__(self, denoiser: nn.Module, *parts: Any, text_length: int, **sizes: Any) -> None:
        config: Any = denoiser.config
        self.rotary: bool = config.use_rotary_positional_embeddings
        if not self.rotary and text_length != config.max_text_seq_length:
            raise UserError(
                f"model.text_length={text_length}; allowed: {config.max_text_seq_length}, the max_text_seq_length of "
                "the transformer, which adds a place to each token"
            )
        super().__init__(denoiser, *parts, text_length=text_length, **sizes)

    @staticmethod
    def one_sample(denoiser: Any, tokens: int, *size: int) -> Any:
        """Call a CogVideoX on the meta device."""
        config, (frames, height, width) = denoiser.config, size
        x = torch.empty(1, frames, config.in_channels, height, width, device="meta")
        text = torch.empty(1, tokens, config.text_embed_dim, device="meta")
        turns = None
        if config.use_rotary_positional_embeddings:
            places = frames * height * width // config.patch_size**2
            turns = (torch.empty(places, config.attention_head_dim, device="meta"),) * 2
        return denoiser(x, text, torch.zeros(1, dtype=torch.long, device="meta"), image_rotary_emb=turns)

    def list_folds(self, sites: list[Site]) -> list[Fold]:
        """The values' folds, and those of the modulations of both streams into what reads the modulated norms."""
        return super().list_folds(sites) + modulation_folds(sites)

    def denoise(
        self, x: Float[Tensor, "B C F h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C F h w"]:
        """Call the network on x_t, timesteps and numbers of prompts; v."""
        frames = x.to(self.dtype).transpose(1, 2)
        turns = rotations(self.denoiser, *x.shape[2:]) if self.rotary else None
        with self.clock.showing(t):
            rows = self.table.at(y, self.dtype)
            output = self.denoiser(frames, timestep=t, image_rotary_emb=turns, **rows, return_dict=False)[0]
        return output.transpose(1, 2)

    @classmethod
    def adapt(cls, transformer: Any, pipe: Any = None, text_length: int | None = None, **facts: int) -> Self:
        """See `LoadedText`; text and clips are as long as the transformer's config says."""
        return super().adapt(transformer, pipe, text_length or transformer.config.max_text_seq_length, **facts)

    @classmethod
    def made_by(cls, transformer: Any, pipe: Any) -> dict[str, int]:
        """See `LoadedClips`: what the transformer was trained on."""
        config = transformer.config
        frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        return {"frames": frames, "height": config.sample_height, "width": config.sample_width}

    @staticmethod
    def encode(pipe: Any, length: int, prompts: list[str]) -> Rows:
        """The T5's rows, [n, length, width], of pads too."""
        options = {"max_sequence_length": length, "device": pipe.text_encoder.device}
        return {"encoder_hidden_states": pipe.encode_prompt(prompts, None, False, **options)[0]}


def rotations(denoiser: Any, frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embeddings [tokens, head width] of latents of a size, as the pipeline has them.

    Places along height and width are those of the size of the training, cut to the clip's aspect ratio.
    """
    config = denoiser.config
    trained = config.sample_width // config.patch_size, config.sample_height // config.patch_size
    grid = frames, height // config.patch_size, width // config.patch_size
    return _rotations(config.attention_head_dim, trained, grid, denoiser.device)


@lru_cache(maxsize=8)
def _rotations(
    channels: int, trained: tuple[int, int], grid: tuple[int, int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    crop = get_resize_crop_region_for_grid(grid[1:], *trained)
    with torch.inference_mode(False):  # they are kept, for gradients too
        made: Any = get_3d_rotary_pos_embed(channels, crop, grid[1:], grid[0], device=device)
    return made


def modulation_folds(sites: list[Site]) -> list[Fold]:
    """The folds of inputs that a layer modulates: of attentions and feed-forwards in both streams, and the last.

    A block's modulation puts out shift, scale and gate of the image, then of the text; the last one shift and scale.
    """
    found = []
    for readers in readers_of_inputs(sites):
        first, names = readers[0], tuple(site.name for site in readers)
        width = first.in_features
        if first.role in ("qkv", "ffn_up"):
            layer = f"{first.path}.norm{1 if first.role == 'qkv' else 2}.linear"
            halves = (0, 3 * width)
        elif first.role == "final":
            layer, halves = "norm_out.linear", (0,)
        else:
            continue
        found.append(Fold(tuple(Source(layer, (start,), (start + width,)) for start in halves), names))
    return found


@dataclass(kw_only=True)
class CogVideoX(ClipModel):
    """Which checkpoint, and the size of its clips; 226 tokens of a prompt are read."""

    transformer = "CogVideoXTransformer3DModel"
    autoencoder = "AutoencoderKLCogVideoX"
    pipeline = "CogVideoXPipeline"
    loaded = LoadedCogVideoX

    def check_config(self, file: Path, config: dict[str, Any]) -> None:
        """See `TextModel`."""
        keys = Keys(file, config)
        unquantized(keys)
        keys.whole("num_attention_heads", "attention_head_dim", "num_layers", "time_embed_dim", "text_embed_dim")
        keys.whole("sample_width", "sample_height", "sample_frames", "temporal_compression_ratio")
        keys.whole("max_text_seq_length")
        keys.one_of("patch_size", (2,))
        if keys.whole("in_channels"):
            keys.one_of("out_channels", (config["in_channels"],), optional=True)
        keys.positive("spatial_interpolation_scale", "temporal_interpolation_scale", optional=True)
        keys.flag("use_rotary_positional_embeddings", "norm_elementwise_affine", "attention_bias")
        keys.one_of("use_learned_positional_embeddings", (False,), optional=True)
        for key, reason in (("patch_size_t", "patches over frames"), ("ofs_embed_dim", "image to video")):
            keys.expect(key, lambda _: False, f"null: {reason} (CogVideoX 1.5) is not supported", optional=True)
        keys.finish()

    def check_autoencoder(self, folder: Path) -> None:
        """See `TextModel`."""
        keys = autoencoder_keys(folder, self.autoencoder)
        keys.whole("latent_channels", "layers_per_block", "norm_num_groups")
        keys.expect("block_out_channels", whole_numbers, "a list of whole numbers")
        keys.expect("temporal_compression_ratio", lambda v: v in (1, 2, 4, 8), "1, 2, 4, 8")
        keys.positive("scaling_factor")
        keys.one_of("invert_scale_latents", (False,), optional=True)
        keys.finish()
