"""Random pipelines of clips: CogVideoX 2b and 5b, LTX, HunyuanVideo."""

from pathlib import Path
from typing import Any

import torch
from helpers import families
from helpers.joint_pipelines import VOCABULARY, make_clip, make_t5
from helpers.pipelines import liven, make_tokenizer

CLIPS = ("cogvideox_2b", "cogvideox_5b", "ltx", "hunyuan_video")
SIZE = {"frames": 9, "height": 64, "width": 64}
"""Of the clips: a latent is four frames of 8×8 pixels, or (LTX) of 16×16."""


def write_clip_pipeline(folder: Path, family: str) -> Path:
    """Write one of `CLIPS`: 2 blocks of width 32 or so, latents 4×3×8×8, 10 words."""
    torch.manual_seed(0)
    if family in ("ltx", "hunyuan_video"):
        return _ltx(folder) if family == "ltx" else _hunyuan(folder)
    return _cogvideox(folder, family)


def _save(folder: Path, pipeline: Any, scheduler: Any, transformer: Any, vae: Any, *encoders: Any) -> Path:
    for seed, module in enumerate((transformer, vae, *encoders)):
        liven(module, seed)
    texts = dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=False))
    texts |= {name.replace("text_encoder", "tokenizer"): make_tokenizer(length=77) for name in texts}
    pipeline(transformer=transformer, vae=vae, scheduler=scheduler, **texts).save_pretrained(folder)
    return folder


def _cogvideox(folder: Path, family: str) -> Path:
    import diffusers

    kind, config, _ = families.cogvideox()
    transformer = kind(
        **config
        | {"num_attention_heads": 2, "text_embed_dim": 48, "use_rotary_positional_embeddings": family.endswith("5b")}
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    )
    kind = diffusers.CogVideoXDPMScheduler if family.endswith("5b") else diffusers.CogVideoXDDIMScheduler
    schedule = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = kind(**schedule, clip_sample=False, snr_shift_scale=1.0 if family.endswith("5b") else 3.0)
    return _save(folder, diffusers.CogVideoXPipeline, scheduler, transformer, vae, make_t5())


def _ltx(folder: Path) -> Path:
    import diffusers

    kind, config, _ = families.ltx()
    wide = {"in_channels": 4, "out_channels": 4, "attention_head_dim": 16, "cross_attention_dim": 32}
    transformer = kind(**config | wide | {"caption_channels": 48})
    ups = (True, True, False, False)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=ups,
        decoder_spatio_temporal_scaling=ups,
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=4,
        patch_size_t=1,
    )
    vae.latents_mean, vae.latents_std = torch.tensor([0.1, 0.0, -0.1, 0.2]), torch.tensor([1.0, 2.0, 0.5, 1.0])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
    return _save(folder, diffusers.LTXPipeline, scheduler, transformer, vae, make_t5())


def _hunyuan(folder: Path) -> Path:
    import diffusers
    from transformers import LlamaConfig, LlamaModel

    kind, config, _ = families.hunyuan_video()
    wide = {"attention_head_dim": 16, "rope_axes_dim": (4, 6, 6), "text_embed_dim": 48, "pooled_projection_dim": 24}
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    small = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    llama = LlamaModel(LlamaConfig(vocab_size=VOCABULARY, hidden_size=48, max_position_embeddings=256, **small, **ends))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    encoders = llama.eval(), make_clip(24, projected=False)
    return _save(folder, diffusers.HunyuanVideoPipeline, scheduler, kind(**config | wide), vae, *encoders)
