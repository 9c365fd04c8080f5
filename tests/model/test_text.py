"""PixArt-α, PixArt-Σ and Latte: latents of stock pipelines, the condition cache, samples alone and in a batch."""

import logging
import shutil

import pytest
import torch
from helpers.family_checks import check_a_sample_alone
from helpers.pipelines import write_text_pipeline

from qdit.errors import UserError
from qdit.model.conditions import conditions
from qdit.model.encoder import encoder_digest
from qdit.model.latte import Latte
from qdit.model.pixart import PixArt
from qdit.sampler.pipeline import PipelineSampler
from qdit.seeding import noise

FAMILIES = ("pixart_alpha", "pixart_sigma", "latte")
PROMPTS = ["a red cat", "blue dog on table", ""]
LENGTH = 12


@pytest.fixture(scope="module", params=FAMILIES)
def pipeline(request, tmp_path_factory):
    """A family's folder; read only. The stock pipeline tells α its resolution only where latents are 128 wide."""
    sizes = {"size": 128, "patch": 32} if request.param == "pixart_alpha" else {}  # as few tokens
    return write_text_pipeline(tmp_path_factory.mktemp(request.param) / request.param, request.param, **sizes)


def option(folder):
    kind = Latte if folder.name == "latte" else PixArt
    return kind(name="tiny", path=str(folder), text_length=LENGTH)


@pytest.fixture(scope="module")
def model(pipeline, tmp_path_factory):
    table = option(pipeline).encode(PROMPTS, tmp_path_factory.mktemp("cache"), torch.device("cpu"))
    return option(pipeline).load("cpu", torch.float32, table)


def sampler(**changes):
    options = {"steps": 4, "guidance": 4.5, "guided_channels": None, "eta": 0.0, "spacing": "scheduler"}
    return PipelineSampler(name="pipeline", **(options | changes))


def test_latents_are_those_of_the_stock_pipeline(model, pipeline):
    import diffusers

    stock = diffusers.DiffusionPipeline.from_pretrained(pipeline, text_encoder=None, tokenizer=None)
    stock.set_progress_bar_config(disable=True)
    rows = model.table.at(torch.tensor([0, 1]), torch.float32)
    null = model.table.at(torch.tensor([2, 2]), torch.float32)
    start = torch.stack([noise(7, "latent", i, model.latent_shape) for i in (0, 1)])
    given = {"prompt_embeds": rows["encoder_hidden_states"], "negative_prompt_embeds": null["encoder_hidden_states"]}
    if "encoder_attention_mask" in rows:
        given["prompt_attention_mask"] = rows["encoder_attention_mask"]
        given["negative_prompt_attention_mask"] = null["encoder_attention_mask"]
        given["use_resolution_binning"] = False
    else:
        given |= {"video_length": model.frames, "mask_feature": False}
    size = {"height": model.image_size, "width": model.image_size}
    options = {"num_inference_steps": 4, "guidance_scale": 4.5, "output_type": "latent", **size}
    expected = stock(prompt=None, negative_prompt=None, latents=start, **given, **options)[0]
    assert torch.equal(sampler().sample(model, [0, 1], torch.tensor([0, 1]), seed=7), expected)


def test_a_sample_alone_is_the_sample_in_a_batch(model):
    check_a_sample_alone(model, sampler(steps=1))


def test_prompts_matter_and_padding_is_cut(model):
    one, other = (sampler(steps=1).sample(model, [0], torch.tensor([n]), seed=0) for n in (0, 1))
    assert not torch.allclose(one, other, rtol=1e-3)
    rows = model.table.rows["encoder_hidden_states"]
    assert rows.shape == (3, LENGTH, 16)
    assert rows[0, 4:].count_nonzero() == 0  # three words and an end


def test_decoded_samples_are_pixels(model):
    pixels = model.decode(sampler(steps=1).sample(model, [0, 1], torch.tensor([0, 1]), seed=0))
    frames = (3,) if model.modality == "video" else ()
    assert pixels.shape == (2, *frames, 3, model.image_size, model.image_size)
    assert pixels.dtype == torch.uint8


def test_costs_count_the_tokens_that_are_read(model):
    crossing = [a for a in model.attentions() if a.name.endswith("attn2")]
    assert {a.keys for a in crossing} == {LENGTH}
    assert {
        s.tokens // (model.frames if model.modality == "video" else 1) for s in model.sites() if s.role == "cross_kv"
    } == {LENGTH}


def encoder(calls, broken=False):
    class Counting:
        length = LENGTH

        def __call__(self, prompts):
            if broken and calls:
                raise KeyboardInterrupt
            calls.append(list(prompts))
            rows = torch.stack([torch.full((LENGTH, 4), float(len(p))) for p in prompts])
            rows[:, 7:] = 0
            return {"encoder_hidden_states": rows, "encoder_attention_mask": torch.ones(len(prompts), LENGTH).long()}

        def too_long(self, prompts):
            return [p for p in prompts if len(p) > 8]

    return Counting


def test_a_killed_encoding_goes_on_where_it_stopped(tmp_path, caplog):
    from qdit.model.conditions import BATCH

    names, calls = [f"p{n}" for n in range(2 * BATCH)] + ["p0"], []
    with pytest.raises(KeyboardInterrupt):
        conditions(names, tmp_path, encoder(calls, broken=True))
    table = conditions(names, tmp_path, encoder(calls))
    assert calls == [names[:BATCH], names[BATCH : 2 * BATCH]]
    assert table.null == len(names) - 1
    again = conditions(names, tmp_path, lambda: pytest.fail("the encoder is not needed"))
    assert all(torch.equal(table.rows[key], again.rows[key]) for key in table.rows)
    damaged = next(tmp_path.rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(
            conditions(names, tmp_path, encoder(calls)).rows["encoder_hidden_states"],
            again.rows["encoder_hidden_states"],
        )
    assert "is made again" in caplog.text
    with caplog.at_level(logging.WARNING):
        conditions(["something longer"], tmp_path, encoder(calls))
    assert "1 of 1 prompts have more than 12 tokens and are cut, such as something longer" in caplog.text


def test_another_encoder_of_the_same_shape_is_another(pipeline, tmp_path, monkeypatch):
    folder = shutil.copytree(pipeline, tmp_path / pipeline.name)
    weights = folder / "text_encoder" / "model.safetensors"
    found = []
    for whole in (1 << 28, 10):  # files of gigabytes are read in pieces
        monkeypatch.setattr("qdit.model.encoder.WHOLE", whole)
        monkeypatch.setattr("qdit.model.encoder._PIECE", 100)
        for _ in range(2):
            found.append(encoder_digest(str(folder), None, tmp_path))
            changed = bytearray(weights.read_bytes())
            changed[-1] ^= 1
            weights.write_bytes(changed)
    assert len(set(found)) == 4
    assert not list(tmp_path.glob("conditions/*"))  # looking writes nothing


def test_a_run_works_again_without_the_encoder(pipeline, tmp_path):
    folder, cache, cpu = shutil.copytree(pipeline, tmp_path / pipeline.name), tmp_path / "cache", torch.device("cpu")
    table = option(folder).encode(PROMPTS, cache, cpu)
    shutil.rmtree(folder / "text_encoder")
    again = option(folder).encode(PROMPTS, cache, cpu)
    assert all(torch.equal(table.rows[key], again.rows[key]) for key in table.rows)
    with pytest.raises(UserError, match="has no text_encoder/, and not all prompts are in the condition cache"):
        option(folder).encode([*PROMPTS, "moon"], cache, cpu)
    with pytest.raises(UserError, match="has no text_encoder/, and no run with this cache_dir has seen it"):
        option(folder).encode(PROMPTS, tmp_path / "other", cpu)


@pytest.mark.parametrize("changes", [{"text_length": 0}, {"text_dtype": "float16"}])
def test_options_are_checked(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        PixArt(**({"name": "x", "path": "x", "text_length": 12} | changes))


def test_sizes_that_do_not_share_the_channels_are_refused(tmp_path):
    folder = write_text_pipeline(tmp_path / "pixart_alpha", "pixart_alpha", heads=2)
    with pytest.raises(UserError, match="in a third of the channels each, and .* are 16"):
        option(folder).load("cpu", torch.float32)
