"""A random FLUX.2 [klein]."""

from pathlib import Path

import torch
from helpers import families
from helpers.joint_pipelines import VOCABULARY
from helpers.pipelines import liven, make_tokenizer

CHAT = "{% for message in messages %}table {{ message['content'] }} moon{% endfor %}"
CHAT += "{% if add_generation_prompt %} sea{% endif %}"
LAYERS = 27
"""The pipeline reads the ninth, the eighteenth and the last of them."""


def write_flux2_pipeline(folder: Path, distilled: bool = True) -> Path:
    """Write a FLUX.2 [klein]: a double and two single blocks of width 32, latents 4×8×8, 16 px, 10 words."""
    import diffusers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    kind, config, _ = families.flux2()
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    text = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": LAYERS}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True}
    encoder = Qwen3ForCausalLM(Qwen3Config(**text, bos_token_id=0, eos_token_id=1, pad_token_id=0))
    transformer = kind(**config | {"joint_attention_dim": 48, "guidance_embeds": False})
    for seed, module in enumerate((transformer, vae, encoder)):
        liven(module, seed)
    random = torch.Generator().manual_seed(3)
    vae.bn.running_mean.copy_(0.2 * torch.randn(16, generator=random))
    vae.bn.running_var.copy_(0.5 + torch.rand(16, generator=random))
    shifting = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
    parts = {"transformer": transformer, "vae": vae, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**shifting)}
    tokenizer = make_tokenizer(length=512)
    tokenizer.chat_template = CHAT
    texts = {"text_encoder": encoder.eval(), "tokenizer": tokenizer}
    diffusers.Flux2KleinPipeline(**parts, **texts, is_distilled=distilled).save_pretrained(folder)
    return folder
