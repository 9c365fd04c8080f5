"""Tiny PixArt-α, PixArt-Σ and Latte with three prompts of different lengths, and points to calibrate them with."""

from pathlib import Path

import torch
from helpers.pipelines import write_text_pipeline

from qdit.calibration import CalibrationData
from qdit.model.conditions import Conditions
from qdit.model.latte import Latte
from qdit.model.pixart import PixArt

FAMILIES = ("pixart_alpha", "pixart_sigma", "latte")
LENGTHS = (3, 7, 1)
"""Tokens of the prompts; twelve are read."""


def load(family: str, folder: Path):
    """A family's tiny model, on the CPU in float32."""
    kind = Latte if family == "latte" else PixArt
    rows = {"encoder_hidden_states": torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))}
    if kind is PixArt:
        rows["encoder_attention_mask"] = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()
    option = kind(name="tiny", path=str(write_text_pipeline(folder / family, family)), text_length=12)
    return option.load("cpu", torch.float32, Conditions(rows))


def points(model, count: int, seed: int = 0) -> CalibrationData:
    """Points in batches of three, with prompts and without."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *model.latent_shape, generator=random)
    times, prompts = (torch.randint(0, end, (count,), generator=random) for end in (1000, 3))
    return CalibrationData(x, times, prompts, 3)
