"""Scores of frames are computed where the frames are: nothing is made on whichever device is the default."""

import pytest
import torch

from qdit.eval.frames import FrameMetric
from qdit.eval.paired import PSNR, SSIM
from qdit.eval.per_sample import PairedMetric
from qdit.eval.video import MotionSmoothnessBlend, TemporalDifferenceError, TemporalFlickering


@pytest.mark.parametrize("metric", [PSNR, SSIM, TemporalFlickering, MotionSmoothnessBlend, TemporalDifferenceError])
def test_with_another_default_device_scores_are_the_same(metric):
    frames = torch.randint(0, 256, (2, 2, 4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made: FrameMetric = metric()
    given = tuple(frames) if isinstance(made, PairedMetric) else (frames[0],)
    expected = made.score(*given)
    with torch.device("meta"):
        found = made.score(*given)
    assert found.device.type == "cpu"
    assert torch.equal(found, expected)
