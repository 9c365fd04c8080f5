"""Wan 2.1 and 2.2: latents and frames of the stock pipeline, folds, patches of clips, what cannot be."""

import json

import pytest
import torch
from helpers.family_checks import check_all_can_be_quantized
from helpers.joint_pipelines import write_wan_pipeline

from qdit.errors import UserError
from qdit.eval.samples import Drawn
from qdit.model.wan import LoadedWan, Wan, Wan22
from qdit.nn.patches import patches
from qdit.sampler.pipeline import PipelineSampler
from qdit.seeding import noise

PROMPTS = ["a red  cat", "Blue dog &amp; table", ""]
KINDS = {"2.1": Wan, "2.2": Wan22}
SIZE = {"frames": 9, "height": 64, "width": 64}


@pytest.fixture(scope="module", params=["2.1", "2.2"])
def folder(request, tmp_path_factory):
    """The pipeline; read only."""
    return write_wan_pipeline(tmp_path_factory.mktemp("wan") / request.param, token_times=request.param == "2.2")


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    option = KINDS[folder.name](name="tiny", path=str(folder), text_length=12, **SIZE)
    table = option.encode(PROMPTS, tmp_path_factory.mktemp("cache"), torch.device("cpu"))
    return option.load("cpu", torch.float32, table)


def sampler(**changes):
    options = {"steps": 4, "guidance": 3.0, "guided_channels": None, "eta": 0.0, "spacing": "scheduler"}
    return PipelineSampler(name="wan", **(options | changes))


def test_latents_and_frames_are_those_of_the_stock_pipeline(model, folder):
    import diffusers

    stock = diffusers.WanPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    start = torch.stack([noise(7, "latent", i, model.latent_shape) for i in (0, 1)])
    rows = [model.table.at(torch.tensor(n), torch.float32)["encoder_hidden_states"] for n in ([0, 1], [2, 2])]
    given = {"prompt_embeds": rows[0], "negative_prompt_embeds": rows[1], "latents": start}
    options = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 3.0}
    expected = stock(**given, **options, output_type="latent")[0]
    found = sampler().sample(model, [0, 1], torch.tensor([0, 1]), seed=7)
    assert torch.equal(found, expected)
    decoded = model.decode(found)
    assert decoded.shape == (2, 9, 3, 64, 64)
    frames = torch.as_tensor(stock(**given, **options, output_type="pt")[0])  # [B, F, 3, H, W] in [0, 1]
    assert (decoded.float() / 255 - frames).abs().max() <= 1.5 / 255


def test_prompts_are_cleaned_as_the_pipeline_does(model):
    assert [LoadedWan.clean(prompt) for prompt in PROMPTS] == ["a red cat", "Blue dog & table", ""]
    rows = model.table.rows["encoder_hidden_states"]
    assert rows[0, :4].all(-1).all()  # three words and an end
    assert rows[0, 4:].count_nonzero() == 0


def test_the_structure_has_a_patch_embedding_of_clips_and_crossing_attentions(model, folder):
    sites = {site.name: site for site in model.sites()}
    assert (sites["patch_embedding"].tokens, sites["patch_embedding"].in_features) == (3 * 4 * 4, 16)
    assert sites["blocks.0.attn2.to_k"].role == "cross_kv"
    assert sites["blocks.0.attn2.to_k"].tokens == 12
    assert sites["condition_embedder.time_proj"].tokens == {Wan: 1, Wan22: 48}[KINDS[folder.name]]
    assert {sites[reader].role for fold in model.folds() for reader in fold.readers} == {
        "attn_out",
        "cross_out",
        "cross_kv",
    }


def test_patches_are_what_a_convolution_multiplies():
    layer, x = torch.nn.Conv3d(3, 5, (1, 2, 2), (1, 2, 2)), torch.randn(2, 3, 4, 6, 8)
    rows = patches(x, (1, 2, 2)) @ layer.weight.flatten(1).mT + layer.bias
    assert torch.allclose(rows.mT.unflatten(2, (4, 3, 4)), layer(x), atol=1e-6)


def test_everything_can_be_quantized_and_at_sixteen_bits_nothing_changes(model):
    check_all_can_be_quantized(model)


WRONG = {
    "frames": ({}, {"frames": 10}, r"model\.frames=10, .*; allowed: 4 n \+ 1 frames of multiples of 16 pixels"),
    "image": ({"image_dim": 20}, {}, r"image_dim=20; allowed: null: image to video is not supported"),
    "channels": ({"in_channels": 12}, {}, r"in_channels=12; allowed: 4: image to video is not supported"),
    "patch": ({"patch_size": [2, 2, 2]}, {}, r"patch_size=\[2, 2, 2\]; allowed: \[1, 2, 2\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_by_name(case, tmp_path):
    config, option, message = WRONG[case]
    folder = write_wan_pipeline(tmp_path / "wan")
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(UserError, match=message):
        Wan(**({"name": "tiny", "path": str(folder), "text_length": 12} | SIZE | option)).load("cpu", torch.float32)


def test_timesteps_of_tokens_need_their_own_option(tmp_path):
    folder = write_wan_pipeline(tmp_path / "2.2", token_times=True)
    about = {"name": "tiny", "path": str(folder), "text_length": 12} | SIZE
    with pytest.raises(UserError, match=r"has expand_timesteps=true; use model=wan_2_2_5b"):
        Wan(**about).load("cpu", torch.float32)
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"boundary_ratio": 0.9}))
    with pytest.raises(UserError, match=r"has boundary_ratio=0\.9; use model=wan_2_2_a14b"):
        Wan22(**about).outline("cpu", torch.float32)


def test_long_clips_are_judged_as_they_are_decoded_whole(model):
    """Frames are made of those before them, and there are four to a latent: nothing may be decoded in parts."""
    latents = torch.randn(2, 4, 11, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = Drawn([latents], model.decode, framewise=model.framewise)
    clips: list[list[torch.Tensor]] = [[]]
    for piece in drawn.pieces():
        clips[-1].append(piece.frames)
        clips += [[]] if piece.last else []
    found = torch.cat([torch.cat(clip, 1) for clip in clips[:-1]])
    assert found.shape == (2, 41, 3, 64, 64)
    assert torch.equal(found, model.decode(latents))
