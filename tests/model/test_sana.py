"""Sana: latents and pixels of the stock pipeline, sites of convolutions, folds, prompts, what cannot be."""

import json
import shutil

import pytest
import torch
from helpers.family_checks import check_a_sample_alone, check_all_can_be_quantized, checked_sites
from helpers.sana_pipeline import write_sana_pipeline
from helpers.text_models import points

from qdit.errors import UserError
from qdit.method import quantize
from qdit.model.sana import Sana
from qdit.sampler.pipeline import PipelineSampler
from qdit.seeding import noise

PROMPTS = ["a red cat", "blue dog on table", "a red cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pipeline; read only."""
    return write_sana_pipeline(tmp_path_factory.mktemp("sana") / "sana")


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    option, cache = Sana(name="tiny", path=str(folder), text_length=12), tmp_path_factory.mktemp("cache")
    option.encode(PROMPTS, cache, torch.device("cpu"))
    return option.load("cpu", torch.float32, option.encode(PROMPTS, cache, torch.device("cpu")))  # from the cache


def sampler(**changes):
    options = {"steps": 4, "guidance": 3.0, "guided_channels": None, "eta": 0.0, "spacing": "scheduler"}
    return PipelineSampler(name="sana", **(options | changes))


def test_latents_and_pixels_are_those_of_the_stock_pipeline(model, folder):
    import diffusers

    stock = diffusers.SanaPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    start = torch.stack([noise(7, "latent", i, model.latent_shape) for i in (0, 1)])
    options = {"height": 32, "width": 32, "num_inference_steps": 4, "guidance_scale": 3.0, "max_sequence_length": 12}
    options |= {"negative_prompt": PROMPTS[2], "latents": start, "use_resolution_binning": False}
    expected = stock(PROMPTS[:2], **options, output_type="latent")[0]
    found = sampler().sample(model, [0, 1], torch.tensor([0, 1]), seed=7)
    assert torch.equal(found, expected)
    pixels = torch.as_tensor(stock(PROMPTS[:2], **options, output_type="pt")[0])
    assert (model.decode(found).float() / 255 - pixels).abs().max() <= 1.5 / 255


def test_the_negative_prompt_stands_behind_no_instruction(model):
    rows, mask = (model.table.rows[key] for key in ("encoder_hidden_states", "encoder_attention_mask"))
    assert mask.sum(1).tolist() == [1 + 3 + 1, 1 + 4 + 1, 3 + 1]  # the instruction's first word, words and an end
    assert not torch.equal(rows[0, :4], rows[2, :4])
    assert rows[2, 4:].count_nonzero() == 0


def test_a_sample_alone_is_the_sample_in_a_batch(model):
    check_a_sample_alone(model, sampler(steps=1))


def test_convolutions_of_one_place_are_sites_and_linear_attentions_have_no_operands(model):
    sites = checked_sites(model, sampler(steps=1, guidance=1.0))
    feed = {name.rpartition(".")[2]: site.role for name, site in sites.items() if ".0.ff." in name}
    assert feed == {"conv_inverted": "ffn_up", "conv_point": "ffn_down"}
    assert {site.role for site in sites.values() if site.gated} == {"ffn_down"}
    assert [each.name for each in model.attentions()] == [f"transformer_blocks.{n}.attn2" for n in (0, 1)]
    assert [fold.readers for fold in model.folds()] == [
        (f"transformer_blocks.{block}.{name}.to_out.0",) for block in (0, 1) for name in ("attn1", "attn2")
    ]


def test_everything_can_be_quantized_and_at_sixteen_bits_nothing_changes(model):
    check_all_can_be_quantized(model)


def test_both_regions_of_a_gated_input_are_calibrated(model):
    """Behind a GELU the negative region ends at its least value, which a gate's product goes far below."""
    import qdit

    words = ["activation=multi_region", "calibration.num_samples=4", "calibration.per_trajectory=2"]
    made = quantize(model, qdit.recipe("rtn", *words, bits="w4a8"), lambda: points(model, 4))
    negative, positive = made.layers["transformer_blocks.0.ff.conv_point"].quantizer.numbers[0, 0].tolist()
    assert negative * 128 > 0.2
    assert positive > 0


WRONG = {
    "guidance": ("transformer", {"guidance_embeds": True}, r"guidance_embeds=True; allowed: False"),
    "solver": (
        "scheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        r"algorithm_type='sde-dpmsolver\+\+'; allowed: dpms",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_by_name(case, folder, tmp_path):
    part, config, message = WRONG[case]
    shutil.copytree(folder, tmp_path / "sana")
    file = tmp_path / "sana" / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(UserError, match=message):
        Sana(name="tiny", path=str(tmp_path / "sana"), text_length=12).load("cpu", torch.float32)
