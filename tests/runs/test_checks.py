"""What does not go together; other checks are tested where their parts are."""

from types import SimpleNamespace
from typing import Any

from qdit.eval.flow import DynamicDegree, FlowScore
from qdit.eval.paired import PSNR
from qdit.eval.video import FrameConsistency, MotionEnergy
from qdit.runs.checks import unfit


def test_clips_that_vbench_would_thin_out_are_not_judged_whole():
    measures = {"eval=dynamic_degree": DynamicDegree(extractor="raft"), "eval=flow_score": FlowScore(extractor="raft")}
    model: Any = SimpleNamespace(modality="video", frames_per_second=16)
    [said] = unfit(measures, {"model": {"name": "wan"}}, model)
    assert said.startswith("eval=dynamic_degree keeps all frames, as VBench does of up to 11 a second; wan makes 16: ")
    model.frames_per_second = 8
    assert unfit(measures, {"model": {"name": "latte"}}, model) == []


def test_metrics_of_motion_need_frames():
    """A model's clips may have one frame; where nobody says how many they have, their metrics tell."""
    motion = {"eval=motion_energy": MotionEnergy(), "eval=consistency": FrameConsistency(extractor="lite0")}
    measures = motion | {"eval=psnr": PSNR()}
    model: Any = SimpleNamespace(modality="video", frames_per_second=8, latent_shape=(4, 1, 8, 8))
    told = "it needs clips of 2 frames or more, and these have 1 frame; leave it out"
    assert unfit(measures, {"model": {"name": "latte"}}, model) == [f"{name}: {told}" for name in motion]
    assert unfit(measures, {"model": {"name": "wan", "frames": 5}}, model) == []
    del model.latent_shape
    assert unfit(measures, {"model": {"name": "pipeline"}}, model) == []
