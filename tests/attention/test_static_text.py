"""Operands of text models: cross-attention with a mask, frames that are rows of their own, groups of timesteps."""

import pytest
import torch
from helpers.configs import config
from helpers.pipelines import write_text_pipeline

from qdit.calibration import CalibrationData
from qdit.calibration.observers import input_maxima, operand_values
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.method import quantize
from qdit.model.latte import Latte
from qdit.model.pixart import PixArt
from qdit.quant.time_groups import Groups
from qdit.runs.parts import build_recipe

TEXT = 12  # tokens


@pytest.fixture(scope="module", params=["pixart_sigma", "latte"])
def model(request, tmp_path_factory):
    folder = write_text_pipeline(tmp_path_factory.mktemp(request.param) / request.param, request.param)
    option = (Latte if request.param == "latte" else PixArt)(name="tiny", path=str(folder), text_length=TEXT)
    table = option.encode(["a red cat", "blue", ""], tmp_path_factory.mktemp("cache"), torch.device("cpu"))
    return option.load("cpu", torch.float32, table)


def points(model, n=8, seed=0):
    x = torch.randn(n, *model.latent_shape, generator=torch.Generator().manual_seed(seed))
    return CalibrationData(x, torch.linspace(0, 999, n).long(), torch.arange(n) % 3, 3)


@torch.no_grad()
def output(model):
    data = points(model, seed=1)
    return model.denoise(data.x, data.t, data.y)


TIMED = ["attention=multi_region", "activation=tensor", "activation/time=equal", "activation.time.groups=2"]


@pytest.mark.parametrize("words", [["attention=uniform"], TIMED], ids=["uniform", "time"])
def test_a_recipe_with_static_operands_is_fitted_saved_and_read(model, words, tmp_path):
    recipe = build_recipe(config("quantizer=rtn", "bits=w8a8", *words))
    assert recipe is not None
    fitted = quantize(model, recipe, lambda: points(model))
    assert fitted.attention.keys() == {a.processor for a in model.attentions()}
    original = output(model)
    with fitted.installed(model):
        found = output(model)
    assert 0 < (found - original).square().mean() < 3e-2 * original.square().mean()
    assert torch.equal(output(model), original)
    save(fitted, tmp_path, provenance(model))
    with load(tmp_path, model).installed(model):
        assert torch.equal(output(model), found)


def test_frames_have_their_samples_timesteps(model):
    """Values by group of timesteps are those of the group's samples alone."""
    data, cross = points(model), [a for a in model.attentions() if a.name.endswith("attn2")]
    sites = {cross[0].sites["probs"]: Groups((500,))}
    early, late = operand_values(model, cross, data, sites)[cross[0].sites["probs"]]
    own = []
    for at in (data.t < 500, data.t >= 500):
        part = CalibrationData(data.x[at], data.t[at], data.y[at], 3)
        own += operand_values(model, cross, part, {cross[0].sites["probs"]: Groups()}).popitem()[1]
    assert len(early) == len(late) == 4 * cross[0].copies * cross[0].heads * cross[0].tokens * TEXT
    for found, expected in zip((early, late), own, strict=True):
        torch.testing.assert_close(found.sort().values, expected.sort().values, atol=1e-6, rtol=1e-5)
    seen = []
    input_maxima(model, model.sites()[:1], data, lambda site, maxima, t: seen.append((len(maxima), len(t))))
    assert all(rows == times for rows, times in seen)
