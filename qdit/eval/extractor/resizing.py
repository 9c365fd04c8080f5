"""How images are resized before a network, frozen: another resize is another metric."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def short_side(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with the shorter one at `side`; the longer is rounded down, as torchvision does.

    >>> short_side(32, 48, 224), short_side(480, 854, 224)
    ((224, 336), (224, 398))
    """
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def long_side(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with the longer one at `side`; the shorter is rounded half to even, as HPSv2 does.

    >>> long_side(32, 48, 224), long_side(480, 854, 224), long_side(16, 16, 224)
    ((149, 224), (126, 224), (224, 224))
    """
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resized(
    images: Float[Tensor, "b 3 H W"], size: tuple[int, int], mode: Literal["bilinear", "bicubic"], antialias: bool
) -> Float[Tensor, "b 3 h w"]:
    """Resize floating-point images with half-pixel centres; bicubic overshoot is kept."""
    return F.interpolate(images, size, mode=mode, align_corners=False, antialias=antialias)


def centre(images: Float[Tensor, "b 3 H W"], side: int) -> Float[Tensor, "b 3 side side"]:
    """The middle square, as torchvision's centre crop rounds it."""
    top, left = (round((length - side) / 2) for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def padded(images: Float[Tensor, "b 3 H W"], side: int) -> Float[Tensor, "b 3 side side"]:
    """A square with the images in its middle and zeros around them; of an odd number of them one more comes behind."""
    down, right = (side - length for length in images.shape[-2:])
    return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))


def normalised(images: Tensor, about: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """Images of [0, 1] less a mean, over a deviation, by channel."""
    mean, deviation = (torch.tensor(each, device=images.device).view(3, 1, 1) for each in about)
    return (images - mean) / deviation


def for_dino(images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 h w"]:
    """VBench's: the short side at 224, bilinear without antialiasing, no crop."""
    whole = resized(images.float(), short_side(images.shape[-2], images.shape[-1], 224), "bilinear", antialias=False)
    return normalised(whole / 255, IMAGENET)


def for_clip_in_vbench(images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 224 224"]:
    """VBench's: bicubic without antialiasing on floats, whose overshoot is not clamped; the middle square."""
    whole = resized(images.float(), short_side(images.shape[-2], images.shape[-1], 224), "bicubic", antialias=False)
    return normalised(centre(whole, 224) / 255, CLIP)


def for_clip(images: UInt8[Tensor, "b 3 H W"], side: int = 224) -> Float[Tensor, "b 3 side side"]:
    """OpenAI's: bicubic with antialiasing, rounded to 8 bits as Pillow does; the middle square."""
    whole = resized(images.float(), short_side(images.shape[-2], images.shape[-1], side), "bicubic", antialias=True)
    return normalised(centre(whole.round().clamp(0, 255), side) / 255, CLIP)


def for_hps(images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 224 224"]:
    """HPSv2's: bicubic with antialiasing on floats, whose overshoot is not clamped; whole, between black bars."""
    whole = resized(images.float(), long_side(images.shape[-2], images.shape[-1], 224), "bicubic", antialias=True)
    return normalised(padded(whole, 224) / 255, CLIP)


def for_clip_in_evalcrafter(images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 224 224"]:
    """EvalCrafter's, a defect kept for comparison: values of 0..255 enter without mean and deviation, squeezed."""
    return resized(images.float(), (224, 224), "bilinear", antialias=False)
