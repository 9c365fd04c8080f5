"""Statistics of text: what the mask of a prompt hides is in none of them, and where there is no mask all rows count."""

import pytest
import torch
from helpers.adaround_parts import OPERANDS, STATIC, recipe
from helpers.text_models import LENGTHS, load, points

from qdit.method import quantize
from qdit.rounding import GPTQ, AdaRound, Nearest
from qdit.runs.diagnose import Trajectory, layer_report
from qdit.transform import ActivationAware, ChannelScaling
from qdit.transform.inputs import sample_rows
from qdit.transform.statistics import Maximum

ROLES = ["qkv", "attn_out", "cross_q", "cross_kv", "cross_out", "embedder"]


def fitted(model, rounding, transform):
    """Everything that a fit makes of the model."""
    parts = {"activation": STATIC, "attention": OPERANDS, "transform": transform, "roles": ROLES}
    quantized = quantize(model, recipe(rounding, **parts), lambda: points(model, 7))
    made = {**quantized.layers, **quantized.attention}
    return {f"{path}.{key}": t for path, m in made.items() for key, t in m.state_dict().items()}


@pytest.mark.parametrize(
    ("rounding", "transform"),
    [
        (GPTQ(), ChannelScaling(name="smooth", roles=ROLES, alpha=0.5, statistic=Maximum())),
        (AdaRound(iterations=2, low_bits=1), ActivationAware(name="awq", roles=ROLES, steps=3, rows=9)),
    ],
    ids=["gptq", "adaround"],
)
def test_nothing_that_is_fitted_depends_on_rows_that_the_mask_hides(tmp_path, rounding, transform):
    model = load("pixart_sigma", tmp_path)
    expected = fitted(model, rounding, transform)
    states, mask = (model.table.rows[key] for key in ("encoder_hidden_states", "encoder_attention_mask"))
    states[mask == 0] = 100.0
    found = fitted(model, rounding, transform)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("family", ["pixart_sigma", "latte"])
def test_samples_of_rows_are_of_those_that_are_attended_to(tmp_path, family):
    model = load(family, tmp_path)
    data, sites = points(model, 5), [site for site in model.sites() if site.role in ("cross_kv", "cross_q")]
    texts = ChannelScaling(name="smooth", roles=["qkv"], alpha=0.5, statistic=Maximum()).inputs(model, sites)
    rows = sample_rows(model, texts, data, 10_000, 0)
    counts = {each.quantized[0].role: len(rows[each.name]) for each in texts}
    frames = model.frames if family == "latte" else 1
    attended = 5 * 12 * frames if family == "latte" else sum(LENGTHS[n] for n in data.y.tolist())
    assert counts == {"cross_kv": attended, "cross_q": 5 * 16 * frames}
    assert model.attended(sites[0].name, data.y) is None  # queries are of the image


def test_reports_of_layers_leave_hidden_rows_out(tmp_path):
    model = load("pixart_sigma", tmp_path)
    quantized = quantize(model, recipe(Nearest(), roles=["cross_kv"]), lambda: points(model, 7))
    data = points(model, 3, seed=1)
    path = Trajectory(data.x[None], [7], data.x[None], data.y)
    expected = layer_report(model, quantized, path)
    states, mask = (model.table.rows[key] for key in ("encoder_hidden_states", "encoder_attention_mask"))
    states[mask == 0] = 100.0
    assert layer_report(model, quantized, path) == expected
    assert len(expected) == 4
