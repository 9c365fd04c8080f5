"""VBench's rules for what a detector found: which frames it reads, colours, places. For detectors of your own.

VBench's detector (GRiT) runs elsewhere, with VBench's own code (`qdit.eval.vbench.external`). These are the rules by
which that code makes numbers of what was found, with their defects, so that what any detector finds can be compared,
and the defects are known: a colour anywhere in a frame's caption counts for the object (words are found inside
others, too), left equals right, and two cats are a cat beside a dog.
"""

from collections.abc import Sequence
from math import nan
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

COLOURS = (*("white", "red", "pink", "blue", "silver", "purple", "orange", "green", "gray", "yellow", "black", "grey"),)
"""The words of which one must be in a caption for its object to have a colour."""
OVERLAP = 0.1
"""Intersection over union from which a place counts less."""
Axis = Literal["x", "y"]


class Found(NamedTuple):
    """One detection: the caption of its region, and the label of its object."""

    caption: str
    label: str


def middles(frames: int, count: int) -> list[int]:
    """The frames that VBench reads of a clip: the middle of each of `count` equal parts.

    >>> middles(49, 8), middles(3, 5)
    ([2, 8, 14, 20, 26, 32, 38, 45], [0, 1, 2, 2, 2])
    """
    if frames < count:
        return [min(number, frames - 1) for number in range(count)]
    edges = torch.linspace(0, frames, count + 1, dtype=torch.float64).long()
    return ((edges[:-1] + edges[1:] - 1) // 2).tolist()


def colours(frames: Sequence[Sequence[Found]], thing: str, colour: str) -> tuple[int, int]:
    """In how many frames an object has any colour, and in how many the one that was asked for.

    >>> colours([[Found("a red car", "car")], [Found("a blue car", "car")], [Found("a car", "car")]], "car", "red")
    (2, 1)
    """
    captions = [[found.caption for found in frame if found.label == thing] for frame in frames]
    named = sum(any(word in caption for caption in frame for word in COLOURS) for frame in captions)
    return named, sum(any(colour in caption for caption in frame) for frame in captions)


def colour_share(frames: Sequence[Sequence[Found]], thing: str, colour: str) -> float:
    """VBench's color of a clip; NaN where the object never has a colour: such a clip is left out of the mean."""
    named, right = colours(frames, thing, colour)
    return right / named if named else nan


def axis_of(relation: str) -> Axis:
    """The axis along which a relation of VBench's prompts is looked for.

    >>> axis_of("on the left of"), axis_of("on the bottom of")
    ('x', 'y')
    """
    return "x" if relation in ("on the left of", "on the right of") else "y"


def place(boxes: Float[Tensor, "n 4"], axis: Axis) -> float:
    """VBench's spatial relationship of a frame: the best of all pairs of boxes, 0 where there is no pair.

    A pair has 1 where the centres differ more along the axis than across it, and `OVERLAP` / IoU where it overlaps more
    than that.

    Args:
        boxes: left, top, right and bottom, of both objects' names, in any order.
        axis: of the relation.
    """
    if len(boxes) < 2:
        return 0.0
    one, other = boxes.double()[torch.triu_indices(len(boxes), len(boxes), 1)]
    apart = ((one[:, :2] + one[:, 2:]) / 2 - (other[:, :2] + other[:, 2:]) / 2).abs()
    along, across = (apart[:, 0], apart[:, 1]) if axis == "x" else (apart[:, 1], apart[:, 0])
    sides = torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])
    shared = sides.clamp(min=0).prod(1)
    iou = shared / ((one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - shared)
    scores = torch.where(iou < OVERLAP, 1.0, OVERLAP / iou.clamp(min=OVERLAP))
    return float(torch.where(along > across, scores, 0.0).max())
