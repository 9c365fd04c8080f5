"""A stock pipeline of clips, in memory: calibrate, quantize, save, and read again."""

import pytest
import torch
from helpers.clip_pipelines import write_clip_pipeline

import qdit
from qdit.api.adapters import protocol_of
from qdit.seeding import generator, noise

PROMPTS = ["a red cat", "blue dog on table"]
GROUPED = ("rtn", "activation=tensor", "activation.time.groups=2", "calibration.num_samples=8")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """CogVideoX 5b with the scheduler that draws noise at each step."""
    from diffusers import DiffusionPipeline

    folder = write_clip_pipeline(tmp_path_factory.mktemp("cogvideox") / "cogvideox_5b", "cogvideox_5b")
    made = DiffusionPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def latents(pipe, start):
    """The stock pipeline's, from the same noise."""
    words = {"num_inference_steps": 4, "max_sequence_length": 12, "num_frames": 9, "height": 64, "width": 64}
    drawn = {"latents": start.transpose(1, 2), "generator": [generator(0, "step", i) for i in (0, 1)]}
    return pipe(PROMPTS, **words, **drawn, output_type="latent")[0].transpose(1, 2)


def test_a_quantized_stock_pipeline_has_the_latents_of_qdits_sampler(pipe, tmp_path):
    data = qdit.calibrate(pipe, PROMPTS, num_samples=2, steps=4)
    assert (data.sampler.guidance, data.x.shape[1:]) == (6.0, (4, 3, 8, 8))
    qdit.quantize(pipe.transformer, *GROUPED, data=data)
    model, sampler, *_ = protocol_of(pipe, ("sampler.steps=4",), PROMPTS)
    start = torch.stack([noise(0, "latent", i, model.latent_shape) for i in (0, 1)])
    made = latents(pipe, start)
    assert torch.equal(sampler.sample(model, [0, 1], torch.tensor([0, 1]), seed=0), made)
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(latents(again, start), made)
    with qdit.full_precision(pipe.transformer):
        assert not torch.equal(latents(pipe, start), made)
