"""Pipelines in memory, judged by their own calls."""

import pytest
from helpers.joint_pipelines import write_joint_pipeline

import qdit
from qdit.errors import UserError


def test_a_pipeline_of_prompts_is_judged_without_an_adapter(tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline

    folder = write_joint_pipeline(tmp_path / "sd3", "sd3")
    full, pipe, fine = (DiffusionPipeline.from_pretrained(folder) for _ in range(3))
    qdit.quantize(pipe.transformer, "rtn", bits="w4a4")
    qdit.quantize(fine.transformer, "rtn", bits="w8a8")
    monkeypatch.setattr("qdit.model.adapter.FAMILIES", {})
    words = ("sampler.steps=2", "sampler.guidance=2", "sampler.call={height: 16, width: 16}")
    few, many = (qdit.judge(each, full, *words, prompts=["a red cat"], n=3) for each in (pipe, fine))
    assert few.index.tolist() == ["sqnr", "psnr"]
    assert (many.value > few.value + 5).all()
    assert (few.stderr > 0).all()
    assert few.n.tolist() == [3, 3]


def test_classes_and_mistakes(tiny_pipe, tmp_path):
    assert (qdit.judge(tiny_pipe, tiny_pipe, "sampler.steps=2", n=2, metrics=["latent_mse"]).value == 0).all()
    with pytest.raises(UserError, match="fid_lite0 compares with a data set"):
        qdit.judge(tiny_pipe, tiny_pipe, metrics=["fid_lite0"])
    with pytest.raises(UserError, match="a str cannot be judged so: it has no transformer"):
        qdit.judge("pipe", tiny_pipe)
