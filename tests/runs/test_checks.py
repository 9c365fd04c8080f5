"""What does not go together; other checks are tested where their parts are."""

from types import SimpleNamespace
from typing import Any

from qdit.eval.flow import DynamicDegree, FlowScore
from qdit.runs.checks import unfit


def test_clips_that_vbench_would_thin_out_are_not_judged_whole():
    measures = {"eval=dynamic_degree": DynamicDegree(extractor="raft"), "eval=flow_score": FlowScore(extractor="raft")}
    model: Any = SimpleNamespace(modality="video", frames_per_second=16)
    [said] = unfit(measures, {"model": {"name": "wan"}}, model)
    assert said.startswith("eval=dynamic_degree keeps all frames, as VBench does of up to 11 a second; wan makes 16: ")
    model.frames_per_second = 8
    assert unfit(measures, {"model": {"name": "latte"}}, model) == []
