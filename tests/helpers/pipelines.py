"""A random two-block DiT with a random autoencoder, in diffusers' folder format."""

import json
from pathlib import Path

import torch


def _liven(module: torch.nn.Module, seed: int) -> None:
    """Seed every weight with unit gain, so that no path is dead and outputs have unit size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim < 2:
                offset = float("norm" in name and name.endswith("weight"))  # gains stay around one
                parameter.copy_(offset + 0.05 * torch.randn(parameter.shape, generator=generator))
            else:
                fan_in = parameter[0].numel() if "embedding_table" not in name else 1
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)


def write_pipeline(folder: Path) -> Path:
    """Write a pipeline: 2 blocks of width 32, patch 2, latents 4×8×8, 10 classes, learned variance, 16×16 pixels."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    _liven(transformer, 0)
    _liven(vae, 1)
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    DDIMScheduler(beta_schedule="linear", clip_sample=False).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DiTPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
