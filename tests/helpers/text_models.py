"""Tiny models of all families that read text, with prompts of different lengths, and points to calibrate them with."""

from pathlib import Path

import torch
from helpers.clip_pipelines import CLIPS, SIZE, write_clip_pipeline
from helpers.flux2_pipeline import write_flux2_pipeline
from helpers.joint_pipelines import write_joint_pipeline, write_wan_pipeline
from helpers.pipelines import write_text_pipeline
from helpers.qwen_pipeline import write_qwen_pipeline
from helpers.sana_pipeline import write_sana_pipeline

from qdit.calibration import CalibrationData
from qdit.model.checks import FLOW_SCHEDULERS
from qdit.model.cogvideox import CogVideoX
from qdit.model.conditions import Conditions
from qdit.model.flux import Flux
from qdit.model.flux2 import Flux2Klein
from qdit.model.hunyuan_video import HunyuanVideo
from qdit.model.latte import Latte
from qdit.model.ltx import LTX
from qdit.model.pixart import PixArt
from qdit.model.qwen_image import QwenImage
from qdit.model.sana import Sana
from qdit.model.sd3 import SD3
from qdit.model.wan import Wan

FAMILIES = ("pixart_alpha", "pixart_sigma", "latte")
JOINT = ("sd3", "sd35", "flux_dev", "flux_schnell")
LENGTHS = (3, 7, 1)
"""Tokens of the prompts; twelve are read."""


def load(family: str, folder: Path):
    """A family's tiny model, on the CPU in float32."""
    if family in JOINT:
        return _load_joint(family, folder)
    if family in ("wan", *CLIPS):
        return _load_clips(family, folder)
    if family == "sana":
        rows = {"encoder_hidden_states": torch.randn(3, 12, 48, generator=torch.Generator().manual_seed(0))}
        rows["encoder_attention_mask"] = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()
        option = Sana(name="tiny", path=str(write_sana_pipeline(folder / family)), text_length=12)
        return option.load("cpu", torch.float32, Conditions(rows))
    if family == "qwen_image":
        rows = {"encoder_hidden_states": torch.randn(3, 12, 48, generator=torch.Generator().manual_seed(0))}
        rows["encoder_hidden_states_mask"] = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()
        option = QwenImage(name="tiny", path=str(write_qwen_pipeline(folder / family)), text_length=12, size=64)
        return option.load("cpu", torch.float32, Conditions(rows))
    if family == "flux2_klein":
        rows = {"encoder_hidden_states": torch.randn(3, 12, 48, generator=torch.Generator().manual_seed(0))}
        option = Flux2Klein(name="tiny", path=str(write_flux2_pipeline(folder / family)), text_length=12, size=16)
        return option.load("cpu", torch.float32, Conditions(rows))
    kind = Latte if family == "latte" else PixArt
    rows = {"encoder_hidden_states": torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))}
    if kind is PixArt:
        rows["encoder_attention_mask"] = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()
    option = kind(name="tiny", path=str(write_text_pipeline(folder / family, family)), text_length=12)
    return option.load("cpu", torch.float32, Conditions(rows))


def _load_clips(family: str, folder: Path):
    rows = {"encoder_hidden_states": torch.randn(3, 12, 48, generator=torch.Generator().manual_seed(0))}
    kind = {"wan": Wan, "ltx": LTX, "hunyuan_video": HunyuanVideo}.get(family, CogVideoX)
    if kind is HunyuanVideo:
        rows["pooled_projections"] = torch.randn(3, 24, generator=torch.Generator().manual_seed(1))
    if kind in (LTX, HunyuanVideo):
        rows["encoder_attention_mask"] = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()
    at = folder / family
    path = write_wan_pipeline(at) if kind is Wan else write_clip_pipeline(at, family)
    return kind(name="tiny", path=str(path), text_length=12, **SIZE).load("cpu", torch.float32, Conditions(rows))


def _load_joint(family: str, folder: Path):
    flux, random = family.startswith("flux"), torch.Generator().manual_seed(0)
    rows = {"encoder_hidden_states": torch.randn(3, 12 if flux else 77 + 12, 48, generator=random)}
    rows["pooled_projections"] = torch.randn(3, 24 if flux else 40, generator=random)
    about = {"name": "tiny", "path": str(write_joint_pipeline(folder / family, family)), "text_length": 12}
    option = Flux(**about, size=16) if flux else SD3(**about)
    return option.load("cpu", torch.float32, Conditions(rows))


def points(model, count: int, seed: int = 0) -> CalibrationData:
    """Points in batches of three, with prompts and without."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *model.latent_shape, generator=random)
    times, prompts = (torch.randint(0, end, (count,), generator=random) for end in (1000, 3))
    flow = model.scheduler_config()["_class_name"] in FLOW_SCHEDULERS
    return CalibrationData(x, times + 0.25 if flow else times, prompts, 3)
