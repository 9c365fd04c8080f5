"""The embedded text-to-image model: stock diffusers draws what is asked for, and a run needs its encoder once."""

import shutil

import pytest
import torch
from helpers.configs import composed

import qdit
from qdit.assets import folder_of
from qdit.dataset.captions import base_emoji
from qdit.errors import UserError
from qdit.eval.extractor import make_extractor
from qdit.eval.match import ranks
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
    with pytest.raises(UserError, match="embedded:emoji_pixart"):
        qdit.embedded("emoji_sora")
