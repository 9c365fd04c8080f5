"""CogVideoX: latents and frames of the stock pipeline with either scheduler, sites, what cannot be."""

import json

import pytest
import torch
from helpers.clip_pipelines import SIZE, write_clip_pipeline
from helpers.family_checks import check_a_sample_alone, check_all_can_be_quantized, checked_sites

from qdit.errors import UserError
from qdit.model.cogvideox import CogVideoX
from qdit.sampler.ddim import DDIM
from qdit.sampler.pipeline import PipelineSampler
from qdit.seeding import generator, noise

PROMPTS = ["a red cat", "blue dog on table", ""]


@pytest.fixture(scope="module", params=["cogvideox_2b", "cogvideox_5b"])
def folder(request, tmp_path_factory):
    """A pipeline; read only."""
    return write_clip_pipeline(tmp_path_factory.mktemp(request.param) / request.param, request.param)


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    option = CogVideoX(name="tiny", path=str(folder), text_length=12, **SIZE)
    table = option.encode(PROMPTS, tmp_path_factory.mktemp("cache"), torch.device("cpu"))
    return option.load("cpu", torch.float32, table)


def sampler(**changes):
    options = {"steps": 4, "guidance": 3.0, "guided_channels": None, "eta": 0.0, "spacing": "scheduler"}
    return PipelineSampler(name="cogvideox", **(options | changes))


@pytest.mark.parametrize("scheduler", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
def test_latents_and_frames_are_those_of_the_stock_pipeline(model, folder, scheduler, monkeypatch):
    """Of prompts, and of the same noise: that of the start, and (DPM) that of the steps."""
    import diffusers

    stock = diffusers.CogVideoXPipeline.from_pretrained(folder)
    stock.scheduler = getattr(diffusers, scheduler).from_config(stock.scheduler.config)
    monkeypatch.setattr(model, "_schedule", model.scheduler_config() | {"_class_name": scheduler})
    stock.set_progress_bar_config(disable=True)
    start = torch.stack([noise(7, "latent", i, model.latent_shape) for i in (0, 1)])
    options = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 3.0}
    options |= {"max_sequence_length": 12, "negative_prompt": ["", ""], "latents": start.transpose(1, 2)}
    given = {"generator": [generator(7, "step", i) for i in (0, 1)], "output_type": "latent"}
    expected = stock(PROMPTS[:2], **options, **given)[0]
    found = sampler().sample(model, [0, 1], torch.tensor([0, 1]), seed=7)
    assert torch.equal(found, expected.transpose(1, 2))
    decoded = model.decode(found)
    assert decoded.shape == (2, 9, 3, 64, 64)
    frames = stock.video_processor.postprocess_video(stock.decode_latents(expected), output_type="pt")
    assert (decoded.float() / 255 - frames).abs().max() <= 1.5 / 255


def test_pads_are_read_as_the_encoder_made_them(model):
    rows = model.table.rows["encoder_hidden_states"]
    assert rows.shape == (3, 12, 48)
    assert rows[0, 4:].any(-1).all()


def test_a_sample_alone_is_the_sample_in_a_batch(model):
    check_a_sample_alone(model, sampler(steps=1))


def test_the_structure_is_that_of_the_real_run(model):
    sites = checked_sites(model, sampler(steps=1, guidance=1.0))
    assert sites["transformer_blocks.0.attn1.to_q"].tokens == 12 + 3 * 4 * 4
    assert {site.role for site in sites.values()} == {
        *("embedder", "adaln", "qkv", "attn_out", "ffn_up", "ffn_down", "modulation", "final")
    }


def test_everything_can_be_quantized_and_at_sixteen_bits_nothing_changes(model):
    check_all_can_be_quantized(model)


def test_a_sampler_of_plain_betas_is_refused(model):
    ddim = DDIM(name="ddim", steps=4, guidance=2.0, guided_channels=None, eta=0.0, spacing="leading")
    with pytest.raises(UserError, match="sampler=ddim: this model was trained on betas whose signal-to-noise ratio"):
        ddim.sample(model, [0], torch.tensor([0]), seed=0)


WRONG = {
    "frames": ({}, {"frames": 10}, r"model\.frames=10, .*; allowed: 4 n \+ 1 frames of multiples of 16 pixels"),
    "text": ({}, {"text_length": 11}, r"model\.text_length=11; allowed: 12, the max_text_seq_length"),
    "patches": ({"patch_size_t": 2}, {}, r"patch_size_t=2; allowed: null: patches over frames"),
    "image": ({"in_channels": 8}, {}, r"out_channels=4; allowed: 8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_by_name(case, tmp_path):
    config, option, message = WRONG[case]
    folder = write_clip_pipeline(tmp_path / "2b", "cogvideox_2b")
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(UserError, match=message):
        CogVideoX(**({"name": "tiny", "path": str(folder), "text_length": 12} | SIZE | option)).load(
            "cpu", torch.float32
        )
