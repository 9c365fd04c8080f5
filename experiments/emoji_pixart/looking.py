"""What the trained models are judged by before they are part of a run: a sheet to look at, and matches by features."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from qdit.dataset.captions import base_emoji
from qdit.eval.extractor import make_extractor
from qdit.eval.extractor.common import FeatureExtractor
from qdit.eval.match import ranks
from qdit.plots.clips import animated
from qdit.storage.atomic import atomic_write


def save_sheet(images: Float[Tensor, "N 3 H W"], path: Path, columns: int) -> None:
    """One picture of images in [0, 1], row by row."""
    Image.fromarray(_tiled(images, columns)).save(path)


def save_moving(clips: Float[Tensor, "N T 3 H W"], path: Path, columns: int) -> None:
    """One animated PNG of clips in [0, 1], row by row."""
    atomic_write(path, animated([_tiled(images, columns) for images in clips.unbind(1)]))


def _tiled(images: Float[Tensor, "N 3 H W"], columns: int, zoom: int = 4) -> NDArray[np.uint8]:
    rows = [torch.cat(list(row), 2) for row in images.split(columns)]
    sheet = (torch.cat(rows, 1).permute(1, 2, 0) * 255).round().byte()
    return sheet.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).numpy()


def emoji_ranks(images: Float[Tensor, "B 3 32 32"], asked: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Rank of the emoji asked for among all 1,911, by pooled features of lite0."""
    return ranks(_features(images), _bank(), asked)


@cache
def _extractor() -> FeatureExtractor:
    extractor = make_extractor("lite0")
    extractor.load("cpu")
    return extractor


@cache
def _bank() -> Tensor:
    return _features(base_emoji()[0])


def _features(images: Tensor) -> Tensor:
    pixels = (images * 255).round().to(torch.uint8)
    return torch.cat([_extractor()(chunk)["pooled"] for chunk in pixels.split(64)])
