"""A random Qwen-Image."""

from pathlib import Path

import torch
from helpers import families
from helpers.joint_pipelines import VOCABULARY
from helpers.pipelines import liven, make_tokenizer


def write_qwen_pipeline(folder: Path) -> Path:
    """Write a Qwen-Image: 2 blocks of width 32, latents 4×8×8, 64 px, 10 words."""
    import diffusers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    kind, config, _ = families.qwen_image()
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * 4,
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.0, -0.1, 0.2],
        latents_std=[1.0, 2.0, 0.5, 1.0],
    )
    text = {"vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 1}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [4, 4, 4], "rope_theta": 10000.0}
    seeing = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 48}
    tokens = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=seeing, **tokens))
    transformer = kind(**config | {"joint_attention_dim": 48})
    for seed, module in enumerate((transformer, vae, encoder)):
        liven(module, seed)
    shifting = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}
    parts = {"transformer": transformer, "vae": vae, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**shifting)}
    texts = {"text_encoder": encoder.eval(), "tokenizer": make_tokenizer(length=512)}
    diffusers.QwenImagePipeline(**parts, **texts).save_pretrained(folder)
    return folder
