"""The embedded text-to-clip model: stock diffusers moves what is asked for as asked, and qdit's latents are its own."""

import shutil
from dataclasses import replace

import pytest
import torch
from helpers.configs import composed

import qdit
from qdit.api.adapters import protocol_of
from qdit.assets import folder_of
from qdit.dataset.motion import PHRASES, read_motion
from qdit.model.latte import Latte
from qdit.runs.run import run
from qdit.seeding import noise

pytest.importorskip("transformers")
CALL = {"video_length": 8, "height": 32, "width": 32, "guidance_scale": 3.0, "clean_caption": False}
SMALL = ["num_samples=2", "batch_size=2", "sampler.steps=2", "device=cpu", "quantizer=rtn", "bits=w8a8"]


@pytest.fixture(scope="module")
def pipe():
    made = qdit.embedded("emoji_latte")
    made.set_progress_bar_config(disable=True)
    return made


def test_the_stock_pipeline_moves_as_it_is_asked(pipe):
    asked = ["moves left", "grows", "fades out"]
    clips = []
    for index, phrase in enumerate(asked):
        noise = torch.Generator().manual_seed(index)
        options = {"num_inference_steps": 5, "generator": noise, "output_type": "pt", **CALL}
        clips.append(pipe(f"red apple {phrase}", **options).frames[0])
    found = [PHRASES[i] for i in read_motion(torch.stack(clips).float().unflatten(0, (-1,)))]
    assert sum(a == b for a, b in zip(found, asked, strict=True)) >= 2, found


def test_latents_are_those_of_the_stock_pipeline(pipe):
    text, other = "rocket moves up", "penguin"  # as long as is kept of one prompt: see experiments/emoji_latte
    words = (f"dataset.negative={other}", "sampler.steps=3", "sampler.guidance=3.0")
    model, sampler, _, _ = protocol_of(pipe, words, [text])
    start = noise(7, "latent", 0, model.latent_shape)[None]
    options = {"num_inference_steps": 3, "latents": start, "output_type": "latent", **CALL}
    stock = pipe(text, negative_prompt=other, **options).frames
    torch.testing.assert_close(sampler.sample(model, [0], torch.tensor([0]), seed=7), stock, rtol=1e-4, atol=1e-4)


def test_the_negative_prompt_is_the_stock_pipelines(pipe, tmp_path):
    """Which masks the prompts of a batch and not the negative one; `mask_negative` is what earlier runs had."""
    prompts = ["rocket moves up", "penguin stands still", ""]
    stock, null = pipe.encode_prompt(prompts[:2], negative_prompt="", do_classifier_free_guidance=True)
    masked = Latte(name="emoji_latte", path="embedded:emoji_latte", text_length=12)
    plain = replace(masked, mask_negative=False)
    for option, expected in ((plain, null[0]), (masked, None)):
        rows = option.encode(prompts, tmp_path, torch.device("cpu")).rows["encoder_hidden_states"]
        torch.testing.assert_close(rows[:2], stock[:, :12])
        if expected is not None:
            torch.testing.assert_close(rows[2], expected[:12])
        else:
            assert not rows[2, 1:].any()
    assert plain.protocol() == masked.protocol() + ", negative unmasked"


def test_a_run_scores_motions_and_needs_the_encoder_once(tmp_path, no_charts, monkeypatch):
    monkeypatch.setattr("qdit.runs.stages.DIAGNOSED_CLIPS", 1)  # takes longer than the rest
    folder = shutil.copytree(folder_of("embedded:emoji_latte"), tmp_path / "mine")
    places = [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}", f"model.path={folder}"]
    first = run(composed("model=emoji_latte", *places, *SMALL))
    shutil.rmtree(folder / "text_encoder")
    again = run(composed("model=emoji_latte", *places, *SMALL[:-1], "bits=w4a8"))
    assert first is not None
    assert again is not None
    assert {"sqnr", "motion_match", "motion_error", "temporal_difference_error"} <= again["metrics"].keys()
    assert first["metrics"]["sqnr"]["value"] > again["metrics"]["sqnr"]["value"] + 5
