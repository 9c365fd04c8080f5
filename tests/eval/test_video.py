"""T42 of the evaluation dossier: constant clips score 1, alternating black and white 0."""

import torch

from qdit.eval.video import TemporalFlickering


class Clips:
    n = 2

    def __init__(self, clips):
        self.clips = clips

    def images(self):
        yield self.clips


def test_constant_and_alternating_clips():
    constant = torch.full((2, 4, 3, 8, 8), 7, dtype=torch.uint8)
    assert TemporalFlickering().compute(Clips(constant), Clips(constant), None).value == 1
    alternating = torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8)
    alternating[:, 1::2] = 255
    assert TemporalFlickering().compute(Clips(alternating), Clips(alternating), None).value == 0
