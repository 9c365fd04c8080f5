"""A random two-block DiT with a random autoencoder, in diffusers' folder format."""

import json
from pathlib import Path
from typing import Any

import torch

from qdit import compat as compat  # before transformers, which imports torchvision


def liven(module: torch.nn.Module, seed: int) -> None:
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


def make_vae(widths: tuple[int, ...], size: int, **more: Any) -> Any:
    """A random autoencoder of images of `size` pixels a side: a block a width, each but the last halving the side."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=size,
        **more,
    )


def write_pipeline(folder: Path) -> Path:
    """Write a pipeline: 2 blocks of width 32, patch 2, latents 4×8×8, 10 classes, learned variance, 16×16 pixels."""
    from diffusers import DDIMScheduler, DiTTransformer2DModel

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
    vae = make_vae((8, 8), 16)
    liven(transformer, 0)
    liven(vae, 1)
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


WORDS = ["red", "blue", "cat", "dog", "on", "a", "table", "house", "sea", "moon"]


def write_text_pipeline(folder: Path, family: str, heads: int = 3, size: int = 8, patch: int = 2) -> Path:
    """Write a pipeline of `pixart_alpha`, `pixart_sigma` or `latte`: 2 blocks, heads of width 8, 10 words."""
    import diffusers
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    shape = {
        "sample_size": size,
        "num_layers": 2,
        "patch_size": patch,
        "attention_head_dim": 8,
        "num_attention_heads": heads,
    }
    shape |= {"in_channels": 4, "out_channels": 8, "cross_attention_dim": 8 * heads, "caption_channels": 16}
    if family == "latte":
        style = {"activation_fn": "gelu-approximate", "norm_type": "ada_norm_single", "attention_bias": True}
        style |= {"norm_elementwise_affine": False, "norm_eps": 1e-6, "num_embeds_ada_norm": 1000, "video_length": 3}
        transformer = diffusers.LatteTransformer3DModel(**shape, **style)
    else:
        conditions = {"use_additional_conditions": family == "pixart_alpha", "interpolation_scale": 1}
        transformer = diffusers.PixArtTransformer2DModel(**shape, **conditions)
    vae = make_vae((8, 8), 16)
    small = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "is_encoder_decoder": False}
    encoder = T5EncoderModel(T5Config(vocab_size=len(WORDS) + 3, feed_forward_proj="gated-gelu", **small))
    for seed, module in enumerate((transformer, vae, encoder)):
        liven(module, seed)
    schedule = {"beta_schedule": "linear"}
    kind = diffusers.DDIMScheduler if family == "latte" else diffusers.DPMSolverMultistepScheduler
    scheduler = kind(**schedule, clip_sample=False) if family == "latte" else kind(**schedule)
    pipelines = {"latte": "LattePipeline", "pixart_alpha": "PixArtAlphaPipeline", "pixart_sigma": "PixArtSigmaPipeline"}
    parts = {"transformer": transformer, "vae": vae, "text_encoder": encoder.eval(), "tokenizer": make_tokenizer()}
    getattr(diffusers, pipelines[family])(scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def write_hunyuan_pipeline(folder: Path) -> Path:
    """Write a Hunyuan-DiT 1.2: 4 blocks of width 32, the last with a long skip connection, latents 4×8×8, 64 px."""
    import diffusers
    from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    transformer = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        num_layers=4,
        mlp_ratio=2.0,
        cross_attention_dim=24,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        use_style_cond_and_image_meta_size=False,
    )
    vae = make_vae((4,) * 4, 64)
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 77}
    bert = BertModel(BertConfig(vocab_size=len(WORDS) + 3, hidden_size=24, **small)).eval()
    small = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "is_encoder_decoder": False}
    t5 = T5EncoderModel(T5Config(vocab_size=len(WORDS) + 3, feed_forward_proj="gated-gelu", **small)).eval()
    for seed, module in enumerate((transformer, vae, bert, t5)):
        liven(module, seed)
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.018, "clip_sample": False}
    scheduler = diffusers.DDPMScheduler(**schedule, prediction_type="v_prediction", steps_offset=1)
    diffusers.HunyuanDiTPipeline(
        vae,
        bert,
        make_tokenizer(),
        transformer,
        scheduler,
        None,  # pyright: ignore[reportArgumentType]
        None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
        text_encoder_2=t5,
        tokenizer_2=make_tokenizer(),
    ).save_pretrained(folder)
    return folder


def make_tokenizer(length: int = 12):
    """Ten words, and an end behind each text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "</s>", "<unk>", *WORDS]
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(names)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", model_max_length=length)
