"""SD3, SD3.5 and FLUX: latents of the stock pipelines, folds, samples alone and in a batch, what is refused."""

import json
import shutil

import pytest
import torch
from helpers.joint_pipelines import write_joint_pipeline

from qdit.calibration.observers import watching
from qdit.errors import UserError
from qdit.model.flux import Flux, packed, unpacked
from qdit.model.sd3 import SD3
from qdit.rounding.reconstruction.targets import closing
from qdit.sampler.ddim import DDIM
from qdit.sampler.pipeline import PipelineSampler
from qdit.seeding import noise

FAMILIES = ("sd3", "sd35", "flux_dev", "flux_schnell")
PROMPTS = ["a red cat", "blue dog on table", ""]
LENGTH = 12


@pytest.fixture(scope="module", params=FAMILIES)
def pipeline(request, tmp_path_factory):
    """A family's folder; read only."""
    return write_joint_pipeline(tmp_path_factory.mktemp(request.param) / request.param, request.param)


def option(folder):
    about = {"name": "tiny", "path": str(folder), "text_length": LENGTH}
    return Flux(**about, size=16) if folder.name.startswith("flux") else SD3(**about)


@pytest.fixture(scope="module")
def model(pipeline, tmp_path_factory):
    table = option(pipeline).encode(PROMPTS, tmp_path_factory.mktemp("cache"), torch.device("cpu"))
    return option(pipeline).load("cpu", torch.float32, table)


def sampler(model, **changes):
    options = {"steps": 4, "guidance": 3.0, "guided_channels": None, "eta": 0.0, "spacing": "scheduler"}
    made = PipelineSampler(name="pipeline", **(options | changes))
    assert made.check(model) == []
    return made


def test_latents_are_those_of_the_stock_pipeline(model, pipeline):
    import diffusers

    stock = diffusers.DiffusionPipeline.from_pretrained(pipeline)
    stock.set_progress_bar_config(disable=True)
    start = torch.stack([noise(7, "latent", i, model.latent_shape) for i in (0, 1)])
    size = {"height": 16, "width": 16, "max_sequence_length": LENGTH}
    options = {"num_inference_steps": 4, "output_type": "latent", "negative_prompt": ["", ""], **size}
    if model.guided == "two_calls":
        options |= {"true_cfg_scale": 3.0}
    elif model.guided == "embedded":
        options |= {"guidance_scale": 3.0, "negative_prompt": None}
    else:
        options |= {"guidance_scale": 3.0}
    flux = pipeline.name.startswith("flux")
    expected = stock(PROMPTS[:2], latents=packed(start) if flux else start, **options)[0]
    found = sampler(model).sample(model, [0, 1], torch.tensor([0, 1]), seed=7)
    assert torch.equal(found, unpacked(expected, 4) if flux else expected)
    assert all(isinstance(t, float) for t in sampler(model).timesteps(model))


def test_a_sample_alone_is_the_sample_in_a_batch(model):
    both = sampler(model, steps=1).sample(model, [0, 1], torch.tensor([0, 1]), seed=0)
    alone = sampler(model, steps=1).sample(model, [1], torch.tensor([1]), seed=0)
    assert (both[1] - alone[0]).abs().max() <= 1e-5 * both.abs().max()
    assert model.decode(both).shape == (2, 3, 16, 16)


def test_prompts_and_guidance_matter(model):
    first, *others = (
        sampler(model, steps=1, guidance=guidance).sample(model, [0], torch.tensor([n]), seed=0)
        for n, guidance in ((0, 3.0), (1, 3.0), (0, 1.0))
    )
    assert all((first - other).abs().max() > 1e-3 * first.abs().max() for other in others)


def test_the_structure_is_that_of_the_real_run(model):
    seen = {}
    sites = {site.name: site for site in model.sites()}

    def note(site, layer, x, output):
        seen.setdefault(site.name, x.numel() // site.in_features)

    with watching(model, model.sites(), note):
        sampler(model, steps=1, guidance=1.0).sample(model, [0], torch.tensor([0]), seed=0)
    assert seen == {name: site.tokens for name, site in sites.items()}
    assert {"text_qkv", "text_up", "text_down", "text_out"} <= {site.role for site in sites.values()}
    text = {site.tokens for site in sites.values() if site.role == "text_qkv"}
    assert text == {LENGTH + 77 * (type(model).__name__ == "LoadedSD3")}


def test_a_sampler_of_betas_is_refused(model):
    ddim = DDIM(name="ddim", steps=4, guidance=2.0, guided_channels=None, eta=0.0, spacing="leading")
    with pytest.raises(UserError, match="sampler=ddim: this model was trained to match a flow"):
        ddim.sample(model, [0], torch.tensor([0]), seed=0)


def test_packing_has_an_inverse_and_the_order_of_the_pipeline():
    from diffusers import FluxPipeline

    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(packed(x), FluxPipeline._pack_latents(x, 2, 3, 4, 6))
    assert torch.equal(unpacked(packed(x), 2), x)


WRONG = {
    "size": ({}, {"size": 18}, r"model\.size=18; allowed: multiples of 4 pixels"),
    "heads": ({"num_attention_heads": 0}, {}, r"num_attention_heads=0; allowed"),
    "rope": ({"axes_dims_rope": [3, 5, 8]}, {}, r"axes_dims_rope=\[3, 5, 8\]; allowed: a list of even numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_by_name(case, tmp_path):
    config, option, message = WRONG[case]
    folder = write_joint_pipeline(tmp_path / "flux_dev", "flux_dev")
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(UserError, match=message):
        Flux(**({"name": "tiny", "path": str(folder), "text_length": LENGTH, "size": 16} | option)).load(
            "cpu", torch.float32
        )


def test_an_encoder_that_is_missing_is_named(tmp_path):
    folder = write_joint_pipeline(tmp_path / "sd3", "sd3")
    shutil.rmtree(folder / "text_encoder_3")
    with pytest.raises(UserError, match="has no text_encoder_3/"):
        option(folder).encode(PROMPTS, tmp_path / "cache", torch.device("cpu"))


def test_each_stream_of_a_block_has_a_closing_layer(model):
    """Whose output is the block's, which AdaRound's inner errors leave out."""
    sites = model.sites()
    first = next(site.path for site in sites if site.role == "text_down")
    own = [site for site in sites if site.path == first]
    assert {site.role for site in own if site.name in closing(own)} == {"ffn_down", "text_down"}
