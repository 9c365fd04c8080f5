"""Tiny transformers of many families, and inputs of one sample on the meta device (specs of published classes)."""

from collections.abc import Callable
from typing import Any

import torch

Family = tuple[Any, dict[str, Any], dict[str, Any]]


def _r(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def _long(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.long, device="meta")


def pixart_alpha() -> Family:
    from diffusers import PixArtTransformer2DModel

    return (
        PixArtTransformer2DModel,
        dict(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=24,
            caption_channels=16,
            use_additional_conditions=True,
        ),
        dict(
            hidden_states=_r(1, 4, 8, 8),
            timestep=_long(1),
            encoder_hidden_states=_r(1, 12, 16),
            encoder_attention_mask=_long(1, 12),
            added_cond_kwargs={"resolution": _r(1, 2), "aspect_ratio": _r(1, 1)},
        ),
    )


def pixart_sigma() -> Family:
    from diffusers import PixArtTransformer2DModel

    return (
        PixArtTransformer2DModel,
        dict(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=24,
            caption_channels=16,
            use_additional_conditions=False,
            interpolation_scale=1,
        ),
        dict(
            hidden_states=_r(1, 4, 8, 8),
            timestep=_long(1),
            encoder_hidden_states=_r(1, 12, 16),
            encoder_attention_mask=_long(1, 12),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ),
    )


def latte() -> Family:
    from diffusers import LatteTransformer3DModel

    return (
        LatteTransformer3DModel,
        dict(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=24,
            caption_channels=16,
            video_length=5,
            attention_bias=True,
            activation_fn="gelu-approximate",
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            num_embeds_ada_norm=1000,
        ),
        dict(hidden_states=_r(1, 4, 5, 8, 8), timestep=_long(1), encoder_hidden_states=_r(1, 12, 16)),
    )


def sd35() -> Family:
    from diffusers import SD3Transformer2DModel

    return (
        SD3Transformer2DModel,
        dict(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=24,
            pos_embed_max_size=8,
            dual_attention_layers=(0, 1),
            qk_norm="rms_norm",
        ),
        dict(
            hidden_states=_r(1, 4, 8, 8),
            encoder_hidden_states=_r(1, 12, 32),
            pooled_projections=_r(1, 24),
            timestep=_r(1),
        ),
    )


def flux() -> Family:
    from diffusers import FluxTransformer2DModel

    return (
        FluxTransformer2DModel,
        dict(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=24,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        dict(
            hidden_states=_r(1, 16, 16),
            encoder_hidden_states=_r(1, 12, 32),
            pooled_projections=_r(1, 24),
            timestep=_r(1),
            guidance=_r(1),
            img_ids=_r(16, 3),
            txt_ids=_r(12, 3),
        ),
    )


def flux2() -> Family:
    from diffusers import Flux2Transformer2DModel

    return (
        Flux2Transformer2DModel,
        dict(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            timestep_guidance_channels=256,
            axes_dims_rope=(4, 4, 4, 4),
            mlp_ratio=3.0,
        ),
        dict(
            hidden_states=_r(1, 16, 16),
            encoder_hidden_states=_r(1, 12, 32),
            timestep=_r(1),
            guidance=_r(1),
            img_ids=_r(16, 4),
            txt_ids=_r(12, 4),
        ),
    )


def wan() -> Family:
    from diffusers import WanTransformer3DModel

    return (
        WanTransformer3DModel,
        dict(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        dict(hidden_states=_r(1, 4, 3, 8, 8), timestep=_long(1), encoder_hidden_states=_r(1, 12, 16)),
    )


def ltx() -> Family:
    from diffusers import LTXVideoTransformer3DModel

    return (
        LTXVideoTransformer3DModel,
        dict(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            num_layers=2,
            caption_channels=16,
        ),
        dict(
            hidden_states=_r(1, 48, 8),
            encoder_hidden_states=_r(1, 12, 16),
            timestep=_long(1),
            encoder_attention_mask=_long(1, 12),
            num_frames=3,
            height=4,
            width=4,
            rope_interpolation_scale=(8 / 25, 32, 32),
        ),
    )


def cogvideox() -> Family:
    from diffusers import CogVideoXTransformer3DModel

    return (
        CogVideoXTransformer3DModel,
        dict(
            num_attention_heads=4,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=16,
            num_layers=2,
            sample_width=8,
            sample_height=8,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=12,
            use_rotary_positional_embeddings=False,
        ),
        dict(hidden_states=_r(1, 3, 4, 8, 8), encoder_hidden_states=_r(1, 12, 16), timestep=_long(1)),
    )


def hunyuan_video() -> Family:
    from diffusers import HunyuanVideoTransformer3DModel

    return (
        HunyuanVideoTransformer3DModel,
        dict(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(4, 4, 4),
        ),
        dict(
            hidden_states=_r(1, 4, 3, 8, 8),
            timestep=_long(1),
            encoder_hidden_states=_r(1, 12, 16),
            encoder_attention_mask=_long(1, 12),
            pooled_projections=_r(1, 8),
            guidance=_r(1),
        ),
    )


def sana() -> Family:
    from diffusers import SanaTransformer2DModel

    return (
        SanaTransformer2DModel,
        dict(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=16,
            sample_size=8,
            patch_size=1,
        ),
        dict(
            hidden_states=_r(1, 4, 8, 8),
            encoder_hidden_states=_r(1, 12, 16),
            timestep=_long(1),
            encoder_attention_mask=_long(1, 12),
        ),
    )


def qwen_image() -> Family:
    from diffusers import QwenImageTransformer2DModel

    return (
        QwenImageTransformer2DModel,
        dict(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
        dict(
            hidden_states=_r(1, 16, 16),
            encoder_hidden_states=_r(1, 12, 16),
            encoder_hidden_states_mask=_long(1, 12),
            timestep=_r(1),
            img_shapes=[[(1, 4, 4)]],
        ),
    )


FAMILIES: dict[str, Callable[[], Family]] = {
    f.__name__: f
    for f in (
        pixart_alpha,
        pixart_sigma,
        latte,
        sd35,
        flux,
        flux2,
        wan,
        ltx,
        cogvideox,
        hunyuan_video,
        sana,
        qwen_image,
    )
}
