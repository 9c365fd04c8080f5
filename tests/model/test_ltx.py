"""LTX: latents and frames of the stock pipeline, folds, prompts behind a mask, sizes and configs that cannot be."""

import json

import pytest
import torch
from helpers.clip_pipelines import SIZE, write_clip_pipeline
from helpers.family_checks import check_a_sample_alone, check_all_can_be_quantized, checked_sites
from helpers.text_models import points

from qdit.errors import UserError
from qdit.model.ltx import LTX
from qdit.sampler.pipeline import PipelineSampler
from qdit.seeding import noise

PROMPTS = ["a red cat", "blue dog on table", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pipeline; read only."""
    return write_clip_pipeline(tmp_path_factory.mktemp("ltx") / "ltx", "ltx")


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    option = LTX(name="tiny", path=str(folder), text_length=12, **SIZE)
    table = option.encode(PROMPTS, tmp_path_factory.mktemp("cache"), torch.device("cpu"))
    return option.load("cpu", torch.float32, table)


def sampler(**changes):
    options = {"steps": 4, "guidance": 3.0, "guided_channels": None, "eta": 0.0, "spacing": "scheduler"}
    return PipelineSampler(name="ltx", **(options | changes))


def test_latents_and_frames_are_those_of_the_stock_pipeline(model, folder):
    import diffusers

    stock = diffusers.LTXPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    start = torch.stack([noise(7, "latent", i, model.latent_shape) for i in (0, 1)])
    options = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 3.0}
    options |= {"max_sequence_length": 12, "negative_prompt": ["", ""], "latents": stock._pack_latents(start)}
    expected = stock(PROMPTS[:2], **options, output_type="latent")[0]
    found = sampler().sample(model, [0, 1], torch.tensor([0, 1]), seed=7)
    assert torch.equal(found, stock._unpack_latents(expected, 3, 4, 4))
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
            assert torch.equal(model.denoise(data.x, data.t, data.y), expected)
        finally:
            rows.copy_(before)
    mask = model.attended("transformer_blocks.0.attn2.to_k", torch.tensor([0, 2]))
    assert mask.sum(1).tolist() == [4, 1]  # three words and an end; an end
    assert model.attended("transformer_blocks.0.attn1.to_k", torch.tensor([0])) is None


def test_a_sample_alone_is_the_sample_in_a_batch(model):
    check_a_sample_alone(model, sampler(steps=1))


def test_the_structure_is_that_of_the_real_run(model):
    sites = checked_sites(model, sampler(steps=1, guidance=1.0))
    assert sites["transformer_blocks.0.attn1.to_q"].tokens == 3 * 4 * 4
    assert {sites[reader].role for fold in model.folds() for reader in fold.readers} == {
        *("attn_out", "cross_out", "cross_kv")
    }


def test_everything_can_be_quantized_and_at_sixteen_bits_nothing_changes(model):
    check_all_can_be_quantized(model)


WRONG = {
    "frames": ("transformer", {}, {"frames": 10}, r"model\.frames=10, .*; allowed: 4 n \+ 1 frames of multiples of 16"),
    "patches": ("transformer", {"patch_size": 2}, {}, r"patch_size=2; allowed: 1"),
    "timestep": ("vae", {"timestep_conditioning": True}, {}, r"timestep_conditioning=True; allowed: false: an auto"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_by_name(case, tmp_path):
    part, config, option, message = WRONG[case]
    folder = write_clip_pipeline(tmp_path / "ltx", "ltx")
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(UserError, match=message):
        LTX(**({"name": "tiny", "path": str(folder), "text_length": 12} | SIZE | option)).load("cpu", torch.float32)
