"""Stock pipelines of SD3.5, FLUX.1 and FLUX.2, in memory: calibrate, quantize by groups of steps, save, read again."""

import pytest
import torch
from helpers.flux2_pipeline import write_flux2_pipeline
from helpers.joint_pipelines import write_joint_pipeline

import qdit
from qdit.api.adapters import protocol_of
from qdit.seeding import noise

PROMPTS = ["a red cat", "blue dog on table"]
GROUPED = ("rtn", "activation=tensor", "activation.time.groups=2", "calibration.num_samples=8")


@pytest.fixture(scope="module", params=["sd35", "flux_dev", "flux_schnell", "flux2_base", "flux2_klein"])
def pipe(request, tmp_path_factory):
    from diffusers import DiffusionPipeline

    folder = tmp_path_factory.mktemp(request.param) / request.param
    if request.param.startswith("flux2"):
        write_flux2_pipeline(folder, distilled=request.param == "flux2_klein")
    else:
        write_joint_pipeline(folder, request.param)
    made = DiffusionPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    made.default_sample_size = 8
    return made


def latents(pipe, start):
    """The stock pipeline's, from the same noise."""
    from qdit.model.flux import packed, unpacked

    flux = type(pipe).__name__ == "FluxPipeline"
    size = {"height": 16, "width": 16, "num_inference_steps": 4, "output_type": "latent"}
    if type(pipe).__name__ == "Flux2KleinPipeline":
        return pipe(prompt=PROMPTS, latents=pipe._patchify_latents(start), **size).images
    made = pipe(PROMPTS, latents=packed(start) if flux else start, **size)[0]
    return unpacked(made, 4) if flux else made


def test_a_quantized_stock_pipeline_has_the_latents_of_qdits_sampler(pipe, tmp_path):
    data = qdit.calibrate(pipe, PROMPTS, num_samples=2, steps=4)
    reads = pipe.transformer.config.get("guidance_embeds")  # SD3 has no such key
    usual = {None: 7.0, True: 3.5, False: 1.0}[reads]
    assert data.sampler.guidance == (4.0 if pipe.config.get("is_distilled") is False else usual)
    assert data.t.is_floating_point()
    qdit.quantize(pipe.transformer, *GROUPED, data=data)
    model, sampler, *_ = protocol_of(pipe, ("sampler.steps=4",), PROMPTS)
    start = torch.stack([noise(0, "latent", i, model.latent_shape) for i in (0, 1)])
    made = latents(pipe, start)
    found = sampler.sample(model, [0, 1], torch.tensor([0, 1]), seed=0)
    assert torch.equal(model.natural(found) if hasattr(model, "natural") else found, made)
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(latents(again, start), made)
    assert qdit.cost(again.transformer) == qdit.cost(pipe.transformer)
    with qdit.full_precision(pipe.transformer):
        assert not torch.equal(latents(pipe, start), made)
