"""The search as a step of a fit: with every rounding, granularity and kind of input; resumed, refused, in vain."""

from dataclasses import replace

import pytest
import torch

from qdit.activation import DynamicActivation, StaticActivation
from qdit.calibration import CalibrationData, NoCalibration
from qdit.errors import UserError
from qdit.hessian import Hessian, LegacyKL, Probe, refine
from qdit.method import Method, quantize
from qdit.nn.linear import Shared
from qdit.quant.ranges import MinMax
from qdit.quant.spec import as_rows
from qdit.rounding import GPTQ, AdaRound, Nearest
from qdit.scope import Scope
from qdit.transform import Hadamard
from qdit.weight import WeightGrid

RULE = Hessian(target=Probe(), candidates=30, tokens=100)
BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]
ALL = [*BLOCKS, "adaln", "embedder", "final"]


def static(rule=RULE):
    return StaticActivation(granularity="tensor", grid="asymmetric", range=rule)


def recipe(weight_range=RULE, activation=None, granularity="row", size=None, rounding=None, roles=BLOCKS, **others):
    grid = WeightGrid(granularity=granularity, group_size=size, grid="asymmetric", range=weight_range)
    return Method(
        scope=Scope(roles=roles),
        weight=grid,
        activation=activation or static(),
        rounding=rounding or Nearest(),
        weight_bits=4,
        activation_bits=4,
        calibration=None,
        **others,
    )


@pytest.fixture
def data(tiny_model) -> CalibrationData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 3, 9, 10, 10, 1, 2, 10, 5, 10])
    x = torch.randn(10, 4, 8, 8, generator=generator)
    return CalibrationData(x, torch.randint(0, 1000, (10,), generator=generator), labels, 4)


def distance(model, quantized, data):
    before = model.denoise(data.x, data.t, data.y)[:, :4]
    with quantized.installed(model):
        return float((model.denoise(data.x, data.t, data.y)[:, :4] - before).square().mean())


def inner(layer):
    return layer.quantizer.quantizer if isinstance(layer.quantizer, Shared) else layer.quantizer


ROUNDINGS = [Nearest(), GPTQ(), AdaRound(iterations=2)]


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize(("granularity", "size"), [("row", None), ("tensor", None), ("group", 8)])
def test_every_rounding_rounds_to_the_grids_that_were_found(tiny_model, data, rounding, granularity, size):
    part = recipe(granularity=granularity, size=size, rounding=rounding)
    quantized = quantize(tiny_model, part, lambda: data)
    allowed, moved = RULE.factors(), 0
    for name, layer in quantized.layers.items():
        spec = quantized.policy[name].weight
        full = tiny_model.denoiser.get_submodule(name).weight
        factors = layer.rounded.grid.scale / part.weight.fit(full, spec).scale
        assert (factors - allowed).abs().amin(1).max() < 1e-5
        moved += int((factors - 1).abs().max() > 1e-3)
        assert len(as_rows(full, spec)) == len(factors)
    assert moved > 6
    assert torch.isfinite(tiny_model.denoise(data.x, data.t, data.y)).all()


def test_the_prediction_is_nearer_than_with_the_whole_range(tiny_model, data):
    plain = quantize(tiny_model, recipe(MinMax(), static(MinMax())), lambda: data)
    searched = quantize(tiny_model, recipe(), lambda: data)
    assert distance(tiny_model, searched, data) < 0.9 * distance(tiny_model, plain, data)


def test_inputs_alone_and_weights_alone(tiny_model, data):
    plain = quantize(tiny_model, recipe(MinMax(), static(MinMax())), lambda: data)
    weights = quantize(tiny_model, recipe(RULE, static(MinMax())), lambda: data)
    inputs = quantize(tiny_model, recipe(MinMax(), static()), lambda: data)
    changed = 0
    for name, layer in plain.layers.items():
        assert torch.equal(inner(layer).scale, inner(weights.layers[name]).scale)
        assert torch.equal(layer.weight, inputs.layers[name].weight)
        changed += not torch.equal(inner(layer).scale, inner(inputs.layers[name]).scale)
        assert not torch.equal(layer.weight, weights.layers[name].weight)
    assert changed > 6
    errors = [distance(tiny_model, each, data) for each in (plain, weights, inputs)]
    assert max(errors[1:]) < errors[0]


@pytest.mark.parametrize("transform", [None, Hadamard(name="hadamard", roles=BLOCKS, block=16, seed=0)])
def test_weights_with_dynamic_inputs_in_any_basis(tiny_model, data, transform):
    dynamic = DynamicActivation(granularity="row", grid="asymmetric")
    plain = quantize(tiny_model, recipe(MinMax(), dynamic, transform=transform), lambda: data)
    searched = quantize(tiny_model, recipe(RULE, dynamic, transform=transform), lambda: data)
    assert distance(tiny_model, searched, data) < distance(tiny_model, plain, data)


def test_every_role_is_searched_and_the_same_fit_gives_the_same_bytes(tiny_model, data, tmp_path):
    part = recipe(roles=ALL)
    first = quantize(tiny_model, part, lambda: data, tmp_path)
    again = quantize(tiny_model, part, lambda: data)
    saved = {path.stem for path in (tmp_path / "grids").iterdir()}
    assert saved == {"before", "block_000", "block_001", "after"}
    middle = tmp_path / "grids" / "block_001.safetensors"
    content = middle.read_bytes()
    middle.unlink()
    resumed = quantize(tiny_model, part, lambda: data, tmp_path)
    assert middle.read_bytes() == content
    finished = quantize(tiny_model, part, lambda: data, tmp_path)
    for name, layer in first.layers.items():
        for other in (again, resumed, finished):
            assert torch.equal(layer.weight, other.layers[name].weight)
            assert torch.equal(inner(layer).scale, inner(other.layers[name]).scale)


def test_a_finished_search_needs_no_gradients(tiny_model, data, tmp_path, monkeypatch):
    quantize(tiny_model, recipe(), lambda: data, tmp_path)
    monkeypatch.setattr(Probe, "importances", None)
    quantize(tiny_model, recipe(), lambda: data, tmp_path)


def test_a_foreign_file_is_refused(tiny_model, data, tmp_path):
    quantize(tiny_model, recipe(granularity="tensor"), lambda: data, tmp_path)
    with pytest.raises(UserError, match="block_000.safetensors holds ranges of another model"):
        quantize(tiny_model, recipe(granularity="row"), lambda: data, tmp_path)


def test_without_a_gradient_ranges_stay_and_a_warning_says_so(tiny_model, data, caplog, monkeypatch):
    flat = LegacyKL()
    monkeypatch.setattr(LegacyKL, "slopes", lambda *_: iter([torch.zeros(len(_[1]), 4, 8, 8)]))
    rule = replace(RULE, target=flat)
    searched = quantize(tiny_model, recipe(rule, static(rule)), lambda: data)
    plain = quantize(tiny_model, recipe(MinMax(), static(MinMax())), lambda: data)
    assert "nothing reaches the prediction from transformer_blocks.0.attn1.to_q" in caplog.text
    for name, layer in plain.layers.items():
        assert torch.equal(layer.weight, searched.layers[name].weight)
        assert torch.equal(inner(layer).scale, inner(searched.layers[name]).scale)


def test_the_released_target_warns_once_and_destroys_nothing(tiny_model, data, caplog):
    rule = replace(RULE, target=LegacyKL())
    searched = quantize(tiny_model, recipe(rule, static(rule)), lambda: data)
    plain = quantize(tiny_model, recipe(MinMax(), static(MinMax())), lambda: data)
    assert caplog.text.count("its gradient is zero") == 1
    assert distance(tiny_model, searched, data) < distance(tiny_model, plain, data)


def test_rules_that_disagree_and_missing_data_are_refused(tiny_model, data):
    other = replace(RULE, target=LegacyKL(), rounds=2)
    with pytest.raises(UserError, match="weight.range.rounds=3 and activation.range.rounds=2"):
        quantize(tiny_model, recipe(RULE, static(other)), lambda: data)
    quantize(tiny_model, recipe(RULE, static(replace(RULE, candidates=7, beta=1.0))), lambda: data)
    dynamic = DynamicActivation(granularity="row", grid="asymmetric")
    without = replace(recipe(RULE, dynamic), calibration=NoCalibration())
    assert without.problems(tiny_model.sites()) == [
        "weight needs data, and calibration=none gives none; use calibration=uniform"
    ]
    assert replace(without, weight_bits=16).problems(tiny_model.sites()) == []
    with pytest.raises(UserError, match="alpha=1.3 is the smallest multiple"):
        Hessian(target=Probe(), alpha=1.3)
    with pytest.raises(UserError, match="probes=0"):
        Probe(probes=0)


def test_the_tokens_that_are_looked_at_are_bounded(tiny_model, data, monkeypatch):
    seen = []
    original = refine.Alternation.__init__

    def spy(self, fit, reading, *others):
        seen.append(len(reading.inputs))
        original(self, fit, reading, *others)

    monkeypatch.setattr(refine.Alternation, "__init__", spy)
    quantize(tiny_model, recipe(roles=ALL), lambda: data)
    assert set(seen) == {10, 100}
