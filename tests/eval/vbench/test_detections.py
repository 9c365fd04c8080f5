"""What VBench makes of detections, its defects among them: golden values (VBench dossier, §2, §3, §8)."""

from math import isnan

import pytest
import torch

from qdit.eval.vbench.detections import Found, axis_of, colour_share, colours, middles, place

FIRST = (0, 0, 10, 10)


@pytest.mark.parametrize(
    ("frames", "count", "golden"),
    [
        (16, 8, [0, 2, 4, 6, 8, 10, 12, 14]),
        (49, 8, [2, 8, 14, 20, 26, 32, 38, 45]),
        (51, 16, [1, 4, 7, 10, 13, 16, 20, 23, 26, 29, 32, 36, 39, 42, 45, 48]),
        (8, 16, [0, 1, 2, 3, 4, 5, 6, *[7] * 9]),
    ],
)
def test_golden_frames(frames, count, golden):
    assert middles(frames, count) == golden


def test_a_colour_anywhere_in_the_frame_counts():
    """Captions of all regions stand beside the label of the first: the red bird makes the car red."""
    frames = [
        [Found("a red car", "car"), Found("sky", "car")],
        [Found("a blue car", "car")],
        [Found("a car", "car")],
        [Found("a car", "car"), Found("a red bird", "car"), Found("sky", "car")],
    ]
    assert colours(frames, "car", "red") == (3, 2)
    assert colour_share(frames, "car", "red") == pytest.approx(2 / 3)
    assert isnan(colour_share(frames, "bird", "red"))
    assert isnan(colour_share([[Found("a car", "car")], []], "car", "red"))
    assert colours([[Found("a covered car", "car")]], "car", "red") == (1, 1)  # a word inside another


@pytest.mark.parametrize(
    ("other", "relation", "golden"),
    [
        ((20, 2, 30, 12), "on the left of", 1),
        ((20, 2, 30, 12), "on the right of", 1),
        ((8, 0, 18, 10), "on the right of", 0.9),
        ((4, 0, 14, 10), "on the right of", 0.2333333),
        ((2, 20, 12, 30), "on the top of", 1),
        ((2, 20, 12, 30), "on the bottom of", 1),
        ((20, 2, 30, 12), "on the top of", 0),
    ],
)
def test_golden_places(other, relation, golden):
    for boxes in ((FIRST, other), (other, FIRST)):  # left equals right
        assert place(torch.tensor(boxes).float(), axis_of(relation)) == pytest.approx(golden, abs=1e-6)


def test_the_best_pair_counts_and_one_box_is_none():
    boxes = torch.tensor([FIRST, (4, 0, 14, 10), (0, 30, 10, 40)]).float()
    assert place(boxes, "y") == 1
    assert place(boxes[:2], "x") == pytest.approx(0.2333333, abs=1e-6)
    assert place(boxes, "x") == pytest.approx(0.2333333, abs=1e-6)
    assert place(boxes[:1], "x") == place(torch.zeros(0, 4), "y") == 0
    assert place(torch.tensor([FIRST, (20, 20, 30, 30)]).float(), "x") == 0  # as far along as across
