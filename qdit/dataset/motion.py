"""Clips of exact motion: an emoji moved by a known affine map for each frame, and back, a motion read off pixels.

A clip [T, 3, 32, 32] is one emoji at 20 px on white; its offset, scale, angle and opacity in every frame follow from
one of twelve phrases. So nothing has to be stored, and the clip of a model can be compared with its prompt without a
network: `read_motion` gives the phrase that explains a clip best.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

FRAMES = 8
SIDE = 32
"""Pixels of a frame's side."""
SIZE = 20
"""Pixels of the side of an emoji at rest."""
TRAVEL = 10.0
"""Pixels between the first and the last place of an emoji that moves."""


def _motions() -> dict[str, Float[Tensor, "T 5"]]:
    """Offset to the right and downwards (px), scale, clockwise angle (degrees) and opacity of each frame."""
    u = torch.linspace(0, 1, FRAMES)
    zero, one = torch.zeros(FRAMES), torch.ones(FRAMES)
    way = TRAVEL * (u - 0.5)
    poses = {
        "stands still": (zero, zero, one, zero, one),
        "moves left": (-way, zero, one, zero, one),
        "moves right": (way, zero, one, zero, one),
        "moves up": (zero, -way, one, zero, one),
        "moves down": (zero, way, one, zero, one),
        "grows": (zero, zero, 0.6 + 0.8 * u, zero, one),
        "shrinks": (zero, zero, 1.4 - 0.8 * u, zero, one),
        "turns left": (zero, zero, one, -90 * u, one),
        "turns right": (zero, zero, one, 90 * u, one),
        "fades in": (zero, zero, one, zero, 0.15 + 0.85 * u),
        "fades out": (zero, zero, one, zero, 1 - 0.85 * u),
        "bounces": (zero, 5 - 10 * (2 * math.pi * u).sin().abs(), one, zero, one),
    }
    return {phrase: torch.stack(columns, 1) for phrase, columns in poses.items()}


PHRASES = tuple(_motions())
POSES: Float[Tensor, "M T 5"] = torch.stack(list(_motions().values()))
"""The poses of every phrase, in the order of `PHRASES`."""


def render(emoji: Float[Tensor, "B 3 32 32"], poses: Float[Tensor, "B T 5"]) -> Float[Tensor, "B T 3 32 32"]:
    """Clips of full-size emoji under poses; all images are in [0, 1].

    Sampled at twice the resolution and averaged, so that an emoji's outline stays smooth wherever it lies.
    """
    dx, dy, scale, angle, opacity = poses.flatten(0, 1).unbind(1)
    zoom = SIDE / (SIZE * scale)
    cos, sin = angle.deg2rad().cos() * zoom, angle.deg2rad().sin() * zoom
    x, y = 2 * dx / SIDE, 2 * dy / SIDE
    rows = (torch.stack([cos, sin, -(cos * x + sin * y)], 1), torch.stack([-sin, cos, sin * x - cos * y], 1))
    frames = _sample((1 - emoji).repeat_interleave(poses.shape[1], 0), torch.stack(rows, 1), 2 * SIDE)
    ink = F.avg_pool2d(frames, 2) * opacity.view(-1, 1, 1, 1)
    return (1 - ink).unflatten(0, poses.shape[:2])


def undo(frames: Float[Tensor, "B 3 32 32"], pose: Float[Tensor, " 5"]) -> Float[Tensor, "B 3 32 32"]:
    """The full-size emoji of which these frames show one pose, in [0, 1]; what lies outside a frame is white."""
    dx, dy, scale, angle, opacity = pose.unbind()
    zoom = SIZE * scale / SIDE
    cos, sin = angle.deg2rad().cos() * zoom, angle.deg2rad().sin() * zoom
    rows = (torch.stack([cos, -sin, 2 * dx / SIDE]), torch.stack([sin, cos, 2 * dy / SIDE]))
    ink = _sample(1 - frames, torch.stack(rows).expand(len(frames), 2, 3), SIDE)
    return 1 - (ink / opacity).clamp(0, 1)


def subject(clips: Float[Tensor, "B T 3 32 32"], phrase: int) -> Float[Tensor, "B 3 32 32"]:
    """The full-size emoji of clips that show a phrase, from the frame in which it is nearest to rest."""
    dx, dy, scale, angle, opacity = POSES[phrase].unbind(1)
    moved = (dx.abs() + dy.abs()) / TRAVEL + (scale - 1).abs() + angle.abs() / 90 + 2 * (1 - opacity)
    frame = int(moved.argmin())
    return undo(clips[:, frame], POSES[phrase, frame])


def phrase_errors(clips: Float[Tensor, "B T 3 32 32"]) -> Float[Tensor, "B M"]:
    """Mean squared error of every phrase's prediction of each clip, of images in [0, 1].

    A phrase predicts a clip from the clip's own emoji: `subject`, rendered under the whole motion.
    """
    predicted = (render(subject(clips, index), poses.expand(len(clips), -1, -1)) for index, poses in enumerate(POSES))
    return torch.stack([(clips - p).square().mean((1, 2, 3, 4)) for p in predicted], 1)


def read_motion(clips: Float[Tensor, "B T 3 32 32"]) -> Int[Tensor, " B"]:
    """Index into `PHRASES` of the motion that explains each clip best.

    An emoji that looks the same after a quarter turn gives no hint of turning: "turns" then reads as "stands still".
    """
    return phrase_errors(clips).argmin(1)


def _sample(ink: Float[Tensor, "B 3 H W"], maps: Float[Tensor, "B 2 3"], side: int) -> Float[Tensor, "B 3 S S"]:
    """Ink (0 outside) seen through affine maps from the output's coordinates to the input's, both in [-1, 1]."""
    grid = F.affine_grid(maps, [len(ink), 3, side, side], align_corners=False)
    return F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
