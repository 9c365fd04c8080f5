"""HunyuanVideo: latents and frames of the stock pipeline, folds, rows that count, what cannot be."""

import json

import pytest
import torch
from helpers.clip_pipelines import SIZE, write_clip_pipeline
from helpers.family_checks import (
    check_a_sample_alone,
    check_all_can_be_quantized,
    check_hidden_rows_count_in_no_range,
    checked_sites,
)
from helpers.text_models import points

from qdit.errors import UserError
from qdit.model.hunyuan_video import HunyuanVideo
from qdit.sampler.pipeline import PipelineSampler
from qdit.seeding import noise

LENGTH = 20
PROMPTS = ["a red cat", "blue dog on table", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pipeline; read only."""
    return write_clip_pipeline(tmp_path_factory.mktemp("hunyuan_video") / "hunyuan_video", "hunyuan_video")


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    option = HunyuanVideo(name="tiny", path=str(folder), text_length=LENGTH, **SIZE)
    table = option.encode(PROMPTS, tmp_path_factory.mktemp("cache"), torch.device("cpu"))
    return option.load("cpu", torch.float32, table)


def sampler(**changes):
    options = {"steps": 4, "guidance": 3.0, "guided_channels": None, "eta": 0.0, "spacing": "scheduler"}
    return PipelineSampler(name="hunyuan_video", **(options | changes))


def test_latents_and_frames_are_those_of_the_stock_pipeline(model, folder):
    import diffusers

    stock = diffusers.HunyuanVideoPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    start = torch.stack([noise(7, "latent", i, model.latent_shape) for i in (0, 1)])
    options = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 3.0}
    options |= {"max_sequence_length": LENGTH, "latents": start}
    expected = stock(PROMPTS[:2], **options, output_type="latent")[0]
    found = sampler().sample(model, [0, 1], torch.tensor([0, 1]), seed=7)
    assert torch.equal(found, expected)
    decoded = model.decode(found)
    assert decoded.shape == (2, 9, 3, 64, 64)
    frames = torch.as_tensor(stock(PROMPTS[:2], **options, output_type="pt")[0])
    assert (decoded.float() / 255 - frames).abs().max() <= 1.5 / 255


def test_rows_behind_a_prompts_end_change_nothing(model):
    data = points(model, 2)
    with torch.no_grad():
        expected = model.denoise(data.x, data.t, data.y)
        rows = model.table.rows["encoder_hidden_states"]
        hidden = model.table.rows["encoder_attention_mask"] == 0
        before = rows.clone()
        rows[hidden] += 100
        try:
            found = model.denoise(data.x, data.t, data.y)
        finally:
            rows.copy_(before)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_rows_that_count_are_the_videos_and_the_prompts(model):
    """Of a prompt, four tokens are left of the template, and three and an end are behind it."""
    y = torch.tensor([0, 2])
    assert model.attended("transformer_blocks.0.attn.add_k_proj", y).sum(1).tolist() == [4 + 3 + 4, 4 + 4]
    assert model.attended("single_transformer_blocks.0.attn.to_k", y).sum(1).tolist() == [48 + 11, 48 + 8]
    assert model.attended("transformer_blocks.0.attn.to_k", y) is None
    assert model.attended("transformer_blocks.0.norm1.linear", y) is None


def test_rows_behind_a_prompts_end_are_in_no_range_of_operands(model):
    check_hidden_rows_count_in_no_range(model, "encoder_hidden_states", "encoder_attention_mask")


def test_a_sample_alone_is_the_sample_in_a_batch(model):
    check_a_sample_alone(model, sampler(steps=1))


def test_the_structure_is_that_of_the_real_run(model):
    sites = checked_sites(model, sampler(steps=1, guidance=1.0))
    assert sites["single_transformer_blocks.0.attn.to_q"].tokens == 48 + LENGTH
    assert {site.second for site in sites.values() if site.role == "parallel_out"} == {32}
    assert {sites[reader].role for fold in model.folds() for reader in fold.readers} == {
        *("qkv", "text_qkv", "attn_out", "text_out", "ffn_up", "text_up", "final", "refiner")
    }


def test_everything_can_be_quantized_and_at_sixteen_bits_nothing_changes(model):
    check_all_can_be_quantized(model)


WRONG = {
    "frames": ("transformer", {}, {"frames": 10}, r"model\.frames=10, .*; allowed: 4 n \+ 1 frames of multiples of 16"),
    "image": ("transformer", {"image_condition_type": "latent_concat"}, {}, r"allowed: null: image to video is not"),
    "guidance": ("transformer", {"guidance_embeds": False}, {}, r"guidance_embeds=False; allowed: True"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_by_name(case, tmp_path):
    part, config, option, message = WRONG[case]
    folder = write_clip_pipeline(tmp_path / "hunyuan_video", "hunyuan_video")
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(UserError, match=message):
        HunyuanVideo(**({"name": "tiny", "path": str(folder), "text_length": LENGTH} | SIZE | option)).load(
            "cpu", torch.float32
        )
