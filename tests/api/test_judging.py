"""Pipelines in memory, judged by their own calls."""

import pytest
import torch
from helpers.clip_pipelines import write_clip_pipeline
from helpers.flux2_pipeline import write_flux2_pipeline
from helpers.joint_pipelines import write_joint_pipeline, write_wan_pipeline
from helpers.qwen_pipeline import write_qwen_pipeline
from helpers.sana_pipeline import write_sana_pipeline

import qdit
from qdit.errors import UserError
from qdit.model.pipeline import Called
from qdit.seeding import generator


def test_a_pipeline_of_prompts_is_judged_without_an_adapter(tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline

    folder = write_joint_pipeline(tmp_path / "sd3", "sd3")
    full, pipe, fine = (DiffusionPipeline.from_pretrained(folder) for _ in range(3))
    qdit.quantize(pipe.transformer, "rtn", bits="w4a4")
    qdit.quantize(fine.transformer, "rtn", bits="w8a8")
    monkeypatch.setattr("qdit.model.adapter.FAMILIES", {})
    words = ("sampler.steps=2", "sampler.guidance=2", "sampler.call={height: 16, width: 16}")
    few, many = (qdit.judge(each, full, *words, prompts=["a red cat", "a dog"], n=4) for each in (pipe, fine))
    assert few.index.tolist() == ["sqnr", "psnr"]
    assert (many.value > few.value + 5).all()
    assert (few.stderr > 0).all()
    assert few.n.tolist() == [4, 4]  # whose errors are over the two prompts


IMAGE, CLIP = {"height": 32, "width": 32}, {"num_frames": 9, "height": 64, "width": 64}
FAMILIES = {
    "flux_dev": (lambda folder: write_joint_pipeline(folder, "flux_dev"), IMAGE),
    "flux2": (write_flux2_pipeline, IMAGE),
    "qwen": (write_qwen_pipeline, IMAGE),
    "sana": (write_sana_pipeline, IMAGE | {"use_resolution_binning": False, "clean_caption": False}),
    "wan": (write_wan_pipeline, CLIP),
    "cogvideox": (lambda folder: write_clip_pipeline(folder, "cogvideox_2b"), CLIP | {"max_sequence_length": 12}),
    "ltx": (lambda folder: write_clip_pipeline(folder, "ltx"), CLIP),
    "hunyuan_video": (lambda folder: write_clip_pipeline(folder, "hunyuan_video"), CLIP),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_whose_configs_do_not_say_a_size_are_judged(tmp_path, family):
    from diffusers import DiffusionPipeline

    write, call = FAMILIES[family]
    write(tmp_path / "model")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model")
    words = ", ".join(f"{key}: {value}".lower() for key, value in call.items())
    found = qdit.judge(pipe, pipe, "sampler.steps=1", f"sampler.call={{{words}}}", prompts=["a red cat"], n=1)
    assert (found.value == 120).all()  # equal samples
    called = Called(pipe, ["a red cat", ""])
    latents = called.call(torch.tensor([0]), [generator(0, "latent", 0)], num_inference_steps=1, **call)
    assert called.image_size is None
    assert called.frames_per_second == {"wan": 16, "ltx": 25, "hunyuan_video": 15}.get(family, 8)
    assert called.decode(latents).ndim == (5 if "num_frames" in call else 4)


def test_clips_of_wan_s_small_2_2_are_faster(tmp_path):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(write_wan_pipeline(tmp_path / "wan", token_times=True))
    assert Called(pipe, ["a red cat", ""]).frames_per_second == 24


def test_classes_and_mistakes(tiny_pipe, tmp_path):
    assert (qdit.judge(tiny_pipe, tiny_pipe, "sampler.steps=2", n=2, metrics=["latent_mse"]).value == 0).all()
    with pytest.raises(UserError, match="fid_lite0 compares no pairs of samples"):
        qdit.judge(tiny_pipe, tiny_pipe, metrics=["fid_lite0"])
    with pytest.raises(UserError, match="a str cannot be judged so: it has no transformer"):
        qdit.judge("pipe", tiny_pipe)
