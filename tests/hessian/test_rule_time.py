"""The search where inputs have a grid a group of timesteps, or two regions."""

from dataclasses import replace

import pytest
import torch
from helpers.configs import config

from qdit.activation import EqualGroups, SidedInputs, StaticActivation
from qdit.calibration import CalibrationData
from qdit.hessian import Hessian, Probe
from qdit.method import Method, quantize
from qdit.nn.linear import Shared
from qdit.nn.quantizers import BookQuantizer
from qdit.quant.ranges import MinMax
from qdit.quant.regions import GELU_MINIMUM
from qdit.rounding import GPTQ, AdaRound, Nearest
from qdit.runs.parts import build_recipe
from qdit.scope import Scope
from qdit.weight import WeightGrid

RULE = Hessian(target=Probe(), candidates=30)
DOWN = "transformer_blocks.1.ff.net.2"
GROUPED = {"time": EqualGroups(groups=2)}
SIDED = {"regions": SidedInputs(roles=["ffn_down"])}


def recipe(rule, rounding=None, weight_rule=None, **kinds):
    return Method(
        scope=Scope(roles=["qkv", "attn_out", "ffn_up", "ffn_down"]),
        weight=WeightGrid(granularity="row", grid="asymmetric", range=weight_rule or rule),
        activation=StaticActivation(granularity="tensor", grid="asymmetric", range=rule, **kinds),
        rounding=rounding or Nearest(),
        weight_bits=6,
        activation_bits=4,
        calibration=None,
    )


@pytest.fixture
def data() -> CalibrationData:
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    visited = list(range(0, 1000, 125))[::-1]
    x = x * torch.linspace(0.5, 2, 8).view(-1, 1, 1, 1)  # ranges change over time
    return CalibrationData(x, torch.tensor(visited), torch.arange(8) % 10, 3, visited=visited)


def distance(model, quantized, data):
    before = model.denoise(data.x, data.t, data.y)[:, :4]
    with quantized.installed(model):
        return float((model.denoise(data.x, data.t, data.y)[:, :4] - before).square().mean())


def inner(layer):
    return layer.quantizer.quantizer if isinstance(layer.quantizer, Shared) else layer.quantizer


@pytest.mark.parametrize("rounding", [Nearest(), GPTQ(), AdaRound(iterations=2)], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("kinds", [GROUPED, SIDED, GROUPED | SIDED], ids=["groups", "sides", "both"])
def test_every_static_input_is_searched_whatever_the_rounding(tiny_model, data, kinds, rounding):
    plain = quantize(tiny_model, recipe(MinMax(), rounding, **kinds), lambda: data)
    searched = quantize(tiny_model, recipe(RULE, rounding, **kinds), lambda: data)
    assert distance(tiny_model, searched, data) < distance(tiny_model, plain, data)
    before, after = inner(plain.layers[DOWN]), inner(searched.layers[DOWN])
    assert isinstance(after, BookQuantizer)
    step = int(kinds != GROUPED)  # of two sides, the positive one
    factors = after.numbers[:, 0, step] / before.numbers[:, 0, step]
    assert (factors.unsqueeze(1) - RULE.factors()).abs().amin(1).max() < 1e-5
    assert (factors - 1).abs().max() > 0.01
    assert len(factors) == (1 if kinds == SIDED else 2)
    other = 1 - step
    assert torch.equal(after.numbers[..., other], before.numbers[..., other])
    if kinds != GROUPED:
        torch.testing.assert_close(after.numbers[:, 0, 0], torch.full((len(factors),), GELU_MINIMUM / 8))


def test_one_group_is_the_static_search_bit_for_bit(tiny_model, data):
    one = quantize(tiny_model, recipe(RULE), lambda: data)
    grouped = quantize(tiny_model, recipe(RULE, time=EqualGroups(groups=1)), lambda: data)
    for name, layer in one.layers.items():
        assert torch.equal(layer.weight, grouped.layers[name].weight)
        assert torch.equal(inner(layer).scale, inner(grouped.layers[name]).scale)


def test_weights_alone_see_inputs_on_the_grids_of_their_time(tiny_model, data):
    plain = quantize(tiny_model, recipe(MinMax(), **GROUPED), lambda: data)
    weights = quantize(tiny_model, recipe(MinMax(), weight_rule=RULE, **GROUPED), lambda: data)
    for name, layer in plain.layers.items():
        assert torch.equal(inner(layer).numbers, inner(weights.layers[name]).numbers)
        assert not torch.equal(layer.weight, weights.layers[name].weight)


def test_a_resumed_search_sets_the_same_steps(tiny_model, data, tmp_path):
    part = recipe(replace(RULE, tokens=50), **GROUPED, **SIDED)
    first = quantize(tiny_model, part, lambda: data, tmp_path)
    (tmp_path / "grids" / "block_000.safetensors").unlink()
    resumed = quantize(tiny_model, part, lambda: data, tmp_path)
    for name, layer in first.layers.items():
        assert torch.equal(inner(layer).numbers, inner(resumed.layers[name]).numbers)


@pytest.mark.parametrize("kind", ["channel_shift", "clustered"])
@pytest.mark.parametrize("rule", ["hessian", "pearson"])
def test_weights_are_searched_beside_inputs_with_a_scale_a_channel_in_groups_of_timesteps(tiny_model, data, kind, rule):
    """Whose quantizers read the time, and are called outside of the network."""
    words = ("quantizer=rtn", "bits=w4a8", "weight=tensor", f"activation={kind}", "activation.time.groups=2")
    made, plain = (
        build_recipe(config(*words, *more))
        for more in ((f"weight/range={rule}", "weight.range.candidates=4"), ("weight/range=minmax",))
    )
    assert made is not None
    assert plain is not None
    errors = [distance(tiny_model, quantize(tiny_model, some, lambda: data), data) for some in (made, plain)]
    assert errors[0] < 2 * errors[1]
    assert errors[0] != errors[1]
