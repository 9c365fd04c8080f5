"""The embedded text-to-image model: stock diffusers draws what is asked for, and a run needs its encoder once."""

import json
import shutil

import pytest
import torch
from helpers.configs import composed
from helpers.pipelines import write_text_pipeline
from safetensors.torch import load_file, save_file

import qdit
from qdit.assets import folder_of
from qdit.dataset.captions import base_emoji
from qdit.errors import UserError
from qdit.eval.extractor import make_extractor
from qdit.eval.match import ranks
from qdit.model.pixart import PixArt
from qdit.runs.run import run

pytest.importorskip("transformers")
ASKED = ["rocket", "soccer ball", "heavy black heart", "camera", "grinning face", "penguin"]
CALL = {"max_sequence_length": 12, "use_resolution_binning": False, "clean_caption": False, "output_type": "pt"}
SMALL = ["num_samples=2", "batch_size=2", "sampler.steps=2", "device=cpu", "quantizer=rtn", "bits=w8a8"]


def test_the_stock_pipeline_draws_what_is_asked_for():
    pipe = qdit.embedded("emoji_pixart")
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 32, "width": 32, "num_inference_steps": 10, "guidance_scale": 3.0, **CALL}
    made = pipe(ASKED, generator=torch.Generator().manual_seed(0), **options).images
    images, names = base_emoji()
    features = [make_extractor("lite0")((255 * x).round().to(torch.uint8))["pooled"] for x in (made, images[::16])]
    asked = torch.arange(len(ASKED)) + len(features[1])
    own = make_extractor("lite0")((255 * torch.stack([images[names.index(n)] for n in ASKED])).to(torch.uint8))
    places = ranks(features[0], torch.cat([features[1], own["pooled"]]), asked)
    assert (places < 5).sum() >= 5, places.tolist()


def test_a_run_needs_the_encoder_once(tmp_path, no_charts, monkeypatch):
    monkeypatch.setattr("qdit.runs.stages.DIAGNOSED", 1)  # takes longer than the rest
    folder = shutil.copytree(folder_of("embedded:emoji_pixart"), tmp_path / "mine")
    places = [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}", f"model.path={folder}"]
    first = run(composed("model=emoji_pixart", *places, *SMALL))
    shutil.rmtree(folder / "text_encoder")
    again = run(composed("model=emoji_pixart", *places, *SMALL[:-1], "bits=w4a8"))
    assert first is not None
    assert again is not None
    assert {"sqnr", "emoji_match_lite0", "feature_distance_lite0"} <= again["metrics"].keys()
    assert first["metrics"]["sqnr"]["value"] > again["metrics"]["sqnr"]["value"] + 10
    shutil.rmtree(tmp_path / "cache" / "conditions")
    with pytest.raises(UserError, match="text_encoder"):
        run(composed("model=emoji_pixart", *places, *SMALL[:-1], "bits=w6a6"))


def test_a_name_that_is_no_model_is_refused_with_those_that_are():
    with pytest.raises(UserError, match="there are emoji_dit, emoji_latte, emoji_pixart"):
        qdit.embedded("emoji_sora")


@pytest.mark.parametrize("family", ["pixart_alpha", "pixart_sigma"])
def test_folders_as_they_were_published_are_read(family, tmp_path):
    """Under the name of the class from which diffusers split PixArt's, and with what only the training read."""
    write_text_pipeline(tmp_path / "now", family)
    shutil.copytree(tmp_path / "now", tmp_path / "published")
    folder = tmp_path / "published" / "transformer"
    config = json.loads((folder / "config.json").read_text())
    config |= {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single", "double_self_attention": False}
    config |= {"only_cross_attention": False, "num_vector_embeds": None, "use_linear_projection": False}
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "diffusion_pytorch_model.safetensors"
    save_file(load_file(weights) | {"caption_projection.y_embedding": torch.ones(10, 16)}, weights)
    made = [PixArt(name="tiny", path=str(tmp_path / which), text_length=10) for which in ("now", "published")]
    now, published = (option.load("cpu", torch.float32).denoiser.state_dict() for option in made)
    assert now.keys() == published.keys()
    assert all(torch.equal(tensor, published[name]) for name, tensor in now.items())
    sites = [option.outline("cpu", torch.float32).sites() for option in made]
    assert sites[0] == sites[1]
    config["norm_type"] = "layer_norm"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="norm_type"):
        made[1].load("cpu", torch.float32)
