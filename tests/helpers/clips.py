"""The clips of the VBench dossier's golden values (§8): eight frames of 32×48."""

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
