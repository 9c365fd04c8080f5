"""Random pipelines that match a flow: SD3, SD3.5-medium, FLUX.1 dev and schnell, Wan 2.1."""

from pathlib import Path
from typing import Any

import torch
from helpers import families
from helpers.pipelines import WORDS, liven, make_tokenizer, make_vae

VOCABULARY = len(WORDS) + 3


def write_joint_pipeline(folder: Path, family: str) -> Path:
    """Write `sd3`, `sd35`, `flux_dev` or `flux_schnell`: two or three blocks, latents 4×8×8, 16 px, 10 words."""
    import diffusers

    torch.manual_seed(0)
    flux = family.startswith("flux")
    transformer = _transformer(family)
    vae = make_vae((8, 8), 16, shift_factor=0.1)
    encoders = _encoders(flux)
    for seed, module in enumerate((transformer, vae, *encoders.values())):
        liven(module, seed)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=family == "flux_dev")
    tokenizers = {name.replace("text_encoder", "tokenizer"): make_tokenizer(length=77) for name in encoders}
    kind = diffusers.FluxPipeline if flux else diffusers.StableDiffusion3Pipeline
    parts = {"transformer": transformer, "vae": vae, "scheduler": scheduler}
    kind(**parts, **encoders, **tokenizers).save_pretrained(folder)
    return folder


def _transformer(family: str) -> Any:
    """One of the specs of helpers/families.py, which reads texts as wide as the tiny encoders make them."""
    flux = family.startswith("flux")
    kind, config, _ = families.flux() if flux else families.sd35()
    more: dict[str, Any] = {"guidance_embeds": family == "flux_dev"} if flux else {}
    if family == "sd3":
        more = {"num_layers": 2, "dual_attention_layers": (), "qk_norm": None}
    return kind(**config | {"joint_attention_dim": 48, "pooled_projection_dim": 24 if flux else 40} | more)


def _encoders(flux: bool) -> dict[str, Any]:
    if flux:
        return {"text_encoder": make_clip(24, projected=False), "text_encoder_2": make_t5()}
    return {"text_encoder": make_clip(24), "text_encoder_2": make_clip(16), "text_encoder_3": make_t5()}


def make_clip(width: int, projected: bool = True) -> Any:
    """A CLIP of some width."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def make_t5(umt5: bool = False) -> Any:
    """A T5 or UMT5 of width 48."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    small = {"d_model": 48, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "is_encoder_decoder": False}
    kind, config = (UMT5EncoderModel, UMT5Config) if umt5 else (T5EncoderModel, T5Config)
    return kind(config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", **small)).eval()


def write_wan_pipeline(folder: Path, token_times: bool = False, boundary: float | None = None) -> Path:
    """Write a Wan 2.1, or 2.2 with a timestep a token, or with two networks: 2 blocks, latents 4×3×8×8, 9 frames."""
    import diffusers

    torch.manual_seed(0)
    kind, config, _ = families.wan()
    sizes = config | {"attention_head_dim": 16, "text_dim": 48}
    transformer = kind(**sizes)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * 4,
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.0, -0.1, 0.2],
        latents_std=[1.0, 2.0, 0.5, 1.0],
    )
    encoder = make_t5(umt5=True)
    for seed, module in enumerate((transformer, vae, encoder)):
        liven(module, seed)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    parts = {"transformer": transformer, "vae": vae, "scheduler": diffusers.UniPCMultistepScheduler(**flow)}
    texts = {"text_encoder": encoder, "tokenizer": make_tokenizer(length=77)}
    if boundary is not None:
        parts |= {"transformer_2": kind(**sizes), "boundary_ratio": boundary}
        liven(parts["transformer_2"], 3)
    diffusers.WanPipeline(**parts, **texts, expand_timesteps=token_times).save_pretrained(folder)
    return folder
