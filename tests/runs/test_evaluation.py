"""Pictures of what was measured."""

from dataclasses import asdict

import pytest

from qdit.eval.paired import WorstPSNR
from qdit.runs import evaluation

CURVE = [30.0, 20.0]


@pytest.mark.parametrize("names", [["psnr_worst_frame"], ["psnr", "psnr_worst_frame"]])
def test_the_curve_of_a_worst_frame_is_that_of_all_frames(names, monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(evaluation.figures, "frame_chart", lambda curves, path, title: drawn.update(curves))
    shown = {"psnr": {}, "psnr_worst_frame": {"shown": asdict(WorstPSNR.shown)}}
    metrics = {name: {"by_frame": CURVE, **shown[name]} for name in names}
    evaluation.frames_picture(metrics | {"sqnr": {"by_frame": None}}, tmp_path / "frames.png", "rtn")
    assert drawn == {"PSNR (dB)": CURVE}
