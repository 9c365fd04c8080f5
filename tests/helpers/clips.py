"""The clips of the VBench dossier's golden values (§8): eight frames of 32×48; and a small CLIP."""

import json
from pathlib import Path

import numpy as np
import torch


def golden_clips() -> dict[str, torch.Tensor]:
    """Each clip, uint8 [1, 8, 3, 32, 48]."""
    t, y, x, c = np.meshgrid(np.arange(8), np.arange(32), np.arange(48), np.arange(3), indexing="ij")
    inside = (y >= 12) & (y <= 19) & (x >= 4 + 2 * t) & (x <= 11 + 2 * t)
    made = {
        "const": np.full(t.shape, 128),
        "blink": np.where(t % 2, 255, 0),
        "fade": 20 * t,
        "ramp": (7 * t + 3 * y + 5 * x + 11 * c) % 256,
        "square": np.where(inside, 200, 40),
        "noise": np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8),
    }
    return {name: torch.from_numpy(v.astype(np.uint8)).permute(0, 3, 1, 2)[None].clone() for name, v in made.items()}


def save_small_clip(folder: Path, image_size: int = 224) -> None:
    """A CLIP of random weights in a folder as transformers saves it, with a tokenizer of letters."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    text = {"vocab_size": len(words), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"patch_size": image_size // 7, "image_size": image_size}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    about = {"tokenizer_class": "CLIPTokenizer", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    about |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
