"""Qwen-Image: latents and pixels of the stock pipeline, norms of guidance, rows that count, folds, what cannot be."""

import json
import shutil

import pytest
import torch
from helpers.family_checks import check_all_can_be_quantized, check_hidden_rows_count_in_no_range, checked_sites
from helpers.qwen_pipeline import write_qwen_pipeline
from helpers.text_models import points

from qdit.errors import UserError
from qdit.model.flux import packed, unpacked
from qdit.model.qwen_image import QwenImage
from qdit.sampler.pipeline import PipelineSampler
from qdit.seeding import noise

PROMPTS = ["a red cat", "blue dog on table", ""]
LENGTH = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pipeline; read only."""
    return write_qwen_pipeline(tmp_path_factory.mktemp("qwen_image") / "qwen_image")


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    option = QwenImage(name="tiny", path=str(folder), text_length=LENGTH, size=64)
    table = option.encode(PROMPTS, tmp_path_factory.mktemp("cache"), torch.device("cpu"))
    return option.load("cpu", torch.float32, table)


def sampler(**changes):
    options = {"steps": 4, "guidance": 3.0, "guided_channels": None, "eta": 0.0, "spacing": "scheduler"}
    return PipelineSampler(name="qwen_image", **(options | changes))


def test_latents_and_pixels_are_those_of_the_stock_pipeline(model, folder):
    """Of the same rows of text; the pipeline itself pads prompts to the longest one only."""
    import diffusers

    stock = diffusers.QwenImagePipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    start = torch.stack([noise(7, "latent", i, model.latent_shape) for i in (0, 1)])
    rows, null = (model.table.at(torch.tensor(n), torch.float32) for n in ([0, 1], [2, 2]))
    names = {"encoder_hidden_states": "prompt_embeds", "encoder_hidden_states_mask": "prompt_embeds_mask"}
    given = {names[key]: value for key, value in rows.items()}
    given |= {f"negative_{names[key]}": value for key, value in null.items()}
    options = {"height": 64, "width": 64, "num_inference_steps": 4, "true_cfg_scale": 3.0, "latents": packed(start)}
    expected = stock(**given, **options, output_type="latent")[0]
    found = sampler().sample(model, [0, 1], torch.tensor([0, 1]), seed=7)
    assert torch.equal(found, unpacked(expected, 4))
    pixels = torch.as_tensor(stock(**given, **options, output_type="pt")[0])
    assert (model.decode(found).float() / 255 - pixels).abs().max() <= 1.5 / 255
    short = stock(PROMPTS[:2], negative_prompt=["", ""], **options, output_type="latent")[0]
    assert (unpacked(short, 4) - found).abs().max() <= 1e-4 * found.abs().max()


def test_rows_behind_a_prompts_end_change_nothing(model):
    data = points(model, 2)
    mask = model.table.rows["encoder_hidden_states_mask"]
    with torch.no_grad():
        expected = model.denoise(data.x, data.t, data.y)
        rows = model.table.rows["encoder_hidden_states"]
        before = rows.clone()
        rows[mask == 0] += 100
        try:
            found = model.denoise(data.x, data.t, data.y)
        finally:
            rows.copy_(before)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    y = torch.tensor([0, 2])
    for site in ("txt_in", "transformer_blocks.0.attn.add_k_proj", "transformer_blocks.0.txt_mlp.net.2"):
        assert torch.equal(model.attended(site, y), mask[y].bool())
    assert mask.sum(1).diff().tolist() == [1, -4]
    assert model.attended("transformer_blocks.0.attn.to_k", y) is None


def test_rows_behind_a_prompts_end_are_in_no_range_of_operands(model):
    check_hidden_rows_count_in_no_range(model, "encoder_hidden_states", "encoder_hidden_states_mask")


def test_guidance_keeps_the_norms_of_tokens(model):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = sampler().predict(model, x, 500.0, torch.tensor([0, 1]))
    plain = sampler(guidance=1.0).predict(model, x, 500.0, torch.tensor([0, 1]))
    torch.testing.assert_close(packed(guided).norm(dim=-1), packed(plain).norm(dim=-1))
    assert (guided - plain).abs().max() > 1e-2


def test_the_structure_is_that_of_the_real_run(model):
    sites = checked_sites(model, sampler(steps=1, guidance=1.0))
    inside = {site.role for site in sites.values() if site.block is not None}
    assert inside == {
        *("adaln", "qkv", "text_qkv", "attn_out", "text_out", "ffn_up", "ffn_down", "text_up", "text_down")
    }


def test_everything_can_be_quantized_and_at_sixteen_bits_nothing_changes(model):
    check_all_can_be_quantized(model)


WRONG = {
    "size": ("transformer", {}, {"size": 24}, r"model\.size=24; allowed: multiples of 16 pixels"),
    "edit": ("transformer", {"zero_cond_t": True}, {}, r"zero_cond_t=True; allowed: False"),
    "channels": ("vae", {"latents_mean": [0.0]}, {}, r"latents_mean=\[0.0\]; allowed: a list of z_dim finite numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_by_name(case, folder, tmp_path):
    part, config, option, message = WRONG[case]
    shutil.copytree(folder, tmp_path / "qwen")
    file = tmp_path / "qwen" / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    about = {"name": "tiny", "path": str(tmp_path / "qwen"), "text_length": LENGTH, "size": 64}
    with pytest.raises(UserError, match=message):
        QwenImage(**(about | option)).load("cpu", torch.float32)
