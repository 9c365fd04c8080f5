"""What a plan says of memory: the bytes of each stage's weights."""

import re
import shutil
from types import SimpleNamespace
from typing import Any

import torch
from helpers.pipelines import write_text_pipeline
from helpers.prompts import prompts

from qdit.model.pixart import PixArt
from qdit.runs.plan import memory_text


def test_the_encoder_comes_first_and_alone(tmp_path, tiny_model):
    folder = write_text_pipeline(tmp_path / "pixart_sigma", "pixart_sigma", size=16)
    option = PixArt(name="tiny", path=str(folder), text_length=12, text_dtype="bfloat16")
    parts: Any = SimpleNamespace(model=option.load("cpu", torch.float32), dataset=prompts(file="plain"))
    transformer = sum(p.numel() for p in parts.model.denoiser.parameters())
    stages = (
        r"first the text encoder alone, ([\d.]+ MB) in bfloat16, for 33 prompts .*, which is freed; then transformer "
    )
    found = re.fullmatch(
        rf"memory of weights: {stages}([\d.]+ MB) in float32, autoencoder [\d.]+ MB",
        said := (memory_text(parts, option)),
    )
    assert found, said
    assert found[2] == f"{4 * transformer / 1e6:,.2f} MB"
    shutil.rmtree(folder / "text_encoder")
    assert "whose size is not known before it is here, in bfloat16" in memory_text(parts, option)
    classes: Any = SimpleNamespace(model=tiny_model, dataset=None)
    assert re.fullmatch(
        r"memory of weights: transformer [\d.]+ MB in float32, autoencoder [\d.]+ MB", memory_text(classes, None)
    )
