"""FLUX.2 [klein]: latents and pixels of the stock pipeline, sites in two parts, what cannot be."""

import json
import shutil

import pytest
import torch
from helpers.families import flux2
from helpers.family_checks import check_a_sample_alone, check_all_can_be_quantized, checked_sites
from helpers.flux2_pipeline import write_flux2_pipeline
from helpers.pipelines import liven
from helpers.text_models import points

import qdit
from qdit.errors import UserError
from qdit.method import quantize
from qdit.model.adapter import adapt
from qdit.model.conditions import Conditions
from qdit.model.flux import packed
from qdit.model.flux2 import Flux2Klein, LoadedFlux2
from qdit.sampler.pipeline import PipelineSampler
from qdit.seeding import noise

PROMPTS = ["a red cat", "blue dog on table", ""]
LENGTH = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pipeline, not distilled; read only."""
    return write_flux2_pipeline(tmp_path_factory.mktemp("flux2") / "flux2", distilled=False)


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    option = Flux2Klein(name="tiny", path=str(folder), text_length=LENGTH, size=16)
    table = option.encode(PROMPTS, tmp_path_factory.mktemp("cache"), torch.device("cpu"))
    return option.load("cpu", torch.float32, table)


@pytest.fixture(scope="module")
def stock(folder):
    import diffusers

    pipe = diffusers.Flux2KleinPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampler(**changes):
    options = {"steps": 4, "guidance": 1.0, "guided_channels": None, "eta": 0.0, "spacing": "scheduler"}
    return PipelineSampler(name="flux2_klein", **(options | changes))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_latents_and_pixels_are_those_of_the_stock_pipeline(guidance, model, stock):
    start = torch.stack([noise(7, "latent", i, model.latent_shape) for i in (0, 1)])
    options = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": guidance}
    options |= {"max_sequence_length": LENGTH, "latents": stock._patchify_latents(start)}
    expected = stock(prompt=PROMPTS[:2], **options, output_type="latent").images
    found = sampler(guidance=guidance).sample(model, [0, 1], torch.tensor([0, 1]), seed=7)
    assert torch.equal(model.natural(found), expected)
    assert torch.equal(packed(start), stock._pack_latents(options["latents"]))
    pixels = torch.as_tensor(stock(prompt=PROMPTS[:2], **options, output_type="pt").images)
    assert (model.decode(found).float() / 255 - pixels).abs().max() <= 1.5 / 255


def test_a_sample_does_not_depend_on_its_batch(model):
    check_a_sample_alone(model, sampler(steps=1))


def test_the_structure_is_that_of_the_real_run(model):
    sites = checked_sites(model, sampler(steps=1))
    inside = {site.role for site in sites.values() if site.block is not None}
    assert inside == {
        *("qkv", "text_qkv", "attn_out", "text_out", "ffn_up", "ffn_down", "text_up", "text_down"),
        *("parallel_in", "parallel_out"),
    }
    outside = {site.name: site.role for site in sites.values() if site.block is None}
    modulations = [f"{name}.linear" for name in ("double_stream_modulation_img", "double_stream_modulation_txt")]
    assert {name for name, role in outside.items() if role == "modulation"} == {
        *(*modulations, "single_stream_modulation.linear", "norm_out.linear")
    }
    assert [site.second for site in sites.values() if site.role == "parallel_out"] == [32, 32]
    assert {site.role for site in sites.values() if site.gated} == {"ffn_down", "text_down", "parallel_out"}
    assert len(model.attentions()) == 3


def test_everything_can_be_quantized_and_at_sixteen_bits_nothing_changes(model):
    check_all_can_be_quantized(model)


def test_the_input_that_closes_a_single_block_may_have_two_grids(model):
    method = qdit.recipe("rtn", "activation=token", "activation.columns=own", bits="w4a8")
    policy = quantize(model, method, lambda: points(model, 4)).policy
    columns = {name: layer.activation.columns for name, layer in policy.items() if layer.activation is not None}
    closing = {f"single_transformer_blocks.{n}.attn.to_out": 32 for n in (0, 1)}
    assert {name: width for name, width in columns.items() if width} == closing


@torch.no_grad()
def test_a_network_that_reads_the_guidance_is_told_it():
    """FLUX.2 [dev]'s; its prompts are not read here."""
    kind, config, _ = flux2()
    denoiser = kind(**config)
    liven(denoiser, 0)
    text = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(0))
    model = adapt(denoiser, side=8, text_length=12).having(Conditions({"encoder_hidden_states": text}))
    assert isinstance(model, LoadedFlux2)
    x, t, y = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.tensor([0])
    before = model.denoise(x, t, y)
    sampler(guidance=2.5).inform(model)
    assert model.told_guidance == 2.5
    assert (model.denoise(x, t, y) - before).abs().max() > 1e-3
    pipe = type("Flux2Pipeline", (), {})()
    with pytest.raises(UserError, match=r"a Flux2Pipeline .* is not supported; allowed: a Flux2KleinPipeline"):
        model.encoder_of(pipe, 12)


def test_prompts_that_are_cut_are_found_with_the_words_around_them(stock):
    encode = LoadedFlux2.encoder_of(stock, 8)
    assert encode.too_long(["a red cat", "a red cat on table"]) == ["a red cat on table"]


WRONG = {
    "size": ("transformer", {}, {"size": 18}, r"model\.size=18; allowed: multiples of 4 pixels"),
    "guidance": ("transformer", {"guidance_embeds": True}, {}, r"guidance_embeds=True; allowed: False"),
    "axes": ("transformer", {"axes_dims_rope": [4, 4, 8]}, {}, r"allowed: 4 even numbers whose sum is"),
    "channels": ("transformer", {"in_channels": 18}, {}, r"in_channels=18; allowed: a multiple of 4"),
    "patches": ("vae", {"patch_size": [1, 1]}, {}, r"patch_size=\[1, 1\]; allowed: \[2, 2\]"),
    "deviation": ("vae", {"batch_norm_eps": 0}, {}, r"batch_norm_eps=0; allowed: a finite number above 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_by_name(case, folder, tmp_path):
    part, config, option, message = WRONG[case]
    shutil.copytree(folder, tmp_path / "flux2")
    file = tmp_path / "flux2" / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    about = {"name": "tiny", "path": str(tmp_path / "flux2"), "text_length": LENGTH, "size": 16}
    with pytest.raises(UserError, match=message):
        Flux2Klein(**(about | option)).load("cpu", torch.float32)


def test_a_tokenizer_without_its_template_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "flux2")
    (tmp_path / "flux2" / "tokenizer" / "chat_template.jinja").unlink()
    option = Flux2Klein(name="tiny", path=str(tmp_path / "flux2"), text_length=LENGTH, size=16)
    with pytest.raises(UserError, match=r"has no chat_template, .* copy or download it again"):
        option.encode(PROMPTS, tmp_path / "cache", torch.device("cpu"))
