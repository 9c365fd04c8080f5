"""VBench's dimensions without weights, and our substitutes, against golden values (VBench dossier, §8; T42)."""

import pytest
import torch
from helpers.clips import golden_clips

from qdit.dataset.captions import base_emoji
from qdit.dataset.motion import FRAMES, PHRASES, POSES, render
from qdit.errors import UserError
from qdit.eval.extractor import make_extractor
from qdit.eval.text import FrameSimilarity
from qdit.eval.video import (
    FeatureDistance,
    FrameConsistency,
    MotionEnergy,
    MotionSmoothnessBlend,
    TemporalDifferenceError,
    TemporalFlickering,
    frame_consistency,
)

CLIPS = golden_clips()
FLICKERING = {
    "const": 1,
    "blink": 0,
    "fade": 0.9215686275,
    "ramp": 0.9453047210,
    "square": 0.9869281040,
    "noise": 0.6644991706,
}
BLEND = {"const": 1, "blink": 0, "fade": 1, "ramp": 0.9712418301, "square": 0.9869281046, "noise": 0.7058571056}
LITE0 = {"const": 1, "blink": 0.945844, "fade": 0.761246, "ramp": 0.930711, "square": 0.916480, "noise": 0.908651}


@pytest.mark.parametrize("name", CLIPS)
def test_golden_values(held, name):
    clip = held(images=CLIPS[name])
    assert TemporalFlickering().compute(clip, clip).value == pytest.approx(FLICKERING[name], abs=5e-8)
    assert MotionSmoothnessBlend().compute(clip, clip).value == pytest.approx(BLEND[name], abs=5e-8)  # float32 there


def test_a_shorter_clip_drops_its_unpaired_frame(held):
    clip = held(images=CLIPS["square"][:, :7])
    assert MotionSmoothnessBlend().compute(clip, clip).value == pytest.approx(0.9869281046, abs=2e-9)


def test_subject_consistency_with_lite0():
    extractor = make_extractor("lite0")
    features = extractor(torch.cat(list(CLIPS.values())).flatten(0, 1))["pooled"].unflatten(0, (6, 8))
    assert frame_consistency(features).tolist() == pytest.approx(list(LITE0.values()), abs=3e-5)


def test_consistency_of_moving_emoji_is_in_a_usable_range():
    """The dossier's twelve emoji are not named, so its means hold to what the choice of emoji changes."""
    emoji = base_emoji()[0][::480][:4]
    still, right, *changing = (
        render(emoji, POSES[PHRASES.index(phrase)].expand(len(emoji), -1, -1))
        for phrase in ("stands still", "moves right", "turns right", "grows", "fades in")
    )
    noisy = right + 0.06 * torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
    others = torch.stack([still[:, 0].roll(-frame, 0) for frame in range(FRAMES)], 1)
    pixels = (torch.stack([still, right, *changing, noisy, others]).clamp(0, 1) * 255).round().to(torch.uint8)
    frames, places = pixels.flatten(0, 2).unique(dim=0, return_inverse=True)
    pooled = make_extractor("lite0")(frames)["pooled"][places].unflatten(0, (7 * len(emoji), FRAMES))
    found = frame_consistency(pooled).unflatten(0, (7, -1)).mean(1)
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found.tolist() == pytest.approx([1, 0.958, 0.867, 0.823, 0.957, 0.877, 0.374], abs=0.06)


def test_consistency_and_distance_of_given_features(held):
    g = torch.Generator().manual_seed(0)
    pooled = torch.randn(3, 4, 6, generator=g)
    own = held(features={"pooled": pooled})
    z = torch.nn.functional.normalize(pooled.double(), dim=2)
    naive = [sum(0.5 * (max(0, float(c[t] @ c[t - 1])) + max(0, float(c[t] @ c[0]))) for t in (1, 2, 3)) / 3 for c in z]
    assert FrameConsistency(extractor="lite0").each(own, own).tolist() == pytest.approx(naive)
    assert FeatureDistance(extractor="lite0").each(own, own).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    opposite = held(features={"pooled": -pooled})
    assert FeatureDistance(extractor="lite0").each(own, opposite).tolist() == pytest.approx([2, 2, 2])


def test_motion_and_its_error(held):
    still, moving = held(images=CLIPS["const"]), held(images=CLIPS["square"])
    assert MotionEnergy().compute(still, still).value == 0
    result = MotionEnergy().compute(moving, still)
    assert result.value == result.delta == pytest.approx(4 * 8 * 160**2 / 255**2 / (32 * 48))
    assert result.higher_is_better is None
    error = TemporalDifferenceError().compute(moving, still)
    assert error.value == pytest.approx(4 * 8 * 160 / (32 * 48))
    assert error.by_frame == pytest.approx([error.value] * 7)
    assert (error.delta, error.stderr) == (None, None)


def test_a_still_is_no_clip(held):
    image = held(images=CLIPS["const"][:, :1])
    with pytest.raises(UserError, match="TemporalFlickering needs clips of 2 frames"):
        TemporalFlickering().compute(image, image)


@pytest.mark.parametrize("metric", [FrameConsistency, FrameSimilarity])
def test_the_features_of_one_frame_are_no_clip(held, metric):
    still = held(features={"pooled": torch.ones(3, 8)})  # as an image's are
    with pytest.raises(UserError, match=r"needs clips of 2 frames or more, and these have 1 frame"):
        metric(extractor="lite0").compute(still, still)
