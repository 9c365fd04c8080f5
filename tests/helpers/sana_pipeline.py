"""A random Sana."""

from pathlib import Path

import torch
from helpers import families
from helpers.joint_pipelines import VOCABULARY
from helpers.pipelines import liven, make_tokenizer


def write_sana_pipeline(folder: Path) -> Path:
    """Write a Sana: 2 blocks of width 32, latents 4×8×8, 32 px, 10 words."""
    import diffusers
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(0)
    kind, config, _ = families.sana()
    wide = {"attention_head_dim": 16, "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 48}
    blocks = {
        f"{part}_{key}": value
        for part in ("encoder", "decoder")
        for key, value in {
            "block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8, 8),
            "qkv_multiscales": ((), (), (5,)),
            "layers_per_block": (1, 1, 1),
        }.items()
    }
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.4,
        **blocks,
    )
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    gemma = Gemma2Config(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=32, **small, **ends)
    encoder = Gemma2Model(gemma).eval()
    transformer = kind(**config | wide)
    for seed, module in enumerate((transformer, vae, encoder)):
        liven(module, seed)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    parts = {"transformer": transformer, "vae": vae, "scheduler": diffusers.DPMSolverMultistepScheduler(**flow)}
    texts = {"text_encoder": encoder, "tokenizer": make_tokenizer(length=512)}
    diffusers.SanaPipeline(**parts, **texts).save_pretrained(folder)
    return folder
