"""Learned ends of ranges: the golden values, gradients, fits that go on, and the recipe that has them."""

from dataclasses import replace

import pytest
import torch
from helpers.adaround_parts import ALL, BLOCKS, OPERANDS, STATIC, codes, points, recipe, steps
from helpers.configs import config

from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.errors import UserError
from qdit.method import quantize
from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.affine import affine
from qdit.quant.grid import Rounded
from qdit.quant.spec import QuantSpec
from qdit.rounding import Boundaries, Nearest
from qdit.rounding.reconstruction.ends import LearnedEnds, SoftEnds, grid_between, slopes
from qdit.rounding.reconstruction.session import Session
from qdit.runs.parts import build_recipe

FREE = QuantSpec(bits=2, granularity="tensor", grid="asymmetric_free", dynamic=False)
X = torch.tensor([[-2, -1, -0.3, 0.2, 0.9, 1.5, 4]])


def between(lower, upper, spec=FREE):
    one = replace(affine(torch.tensor([[lower]]), torch.tensor([[upper]]), spec), scale=torch.ones(1, 1))
    return grid_between(torch.tensor([[lower, upper]]), one, spec)


def test_golden_values_and_slopes():
    """Where l is a multiple of the step, both formulas agree, but for the value that is half-way (1.5)."""
    grid = between(-1.0, 2.0)
    assert grid.round(X).tolist() == [[-1, -1, 0, 0, 1, 2, 2]]
    lower, upper, inside = (part[0][[0, 1, 2, 3, 4, 6]].tolist() for part in slopes(X, grid))
    assert lower == pytest.approx([1, 0, -0.1, 0.066667, -0.033333, 0], abs=1e-6)
    assert upper == pytest.approx([0, 0, 0.1, -0.066667, 0.033333, 1], abs=1e-6)
    assert inside == [0, 1, 1, 1, 1, 0]
    assert between(-0.6, 2.4).round(X).tolist() == [[-1, -1, 0, 0, 1, 2, 2]]  # 0 stays 0


def naive(x, ends, start, spec):
    lower, upper = ends.unsqueeze(-1).unbind(1)
    scale = (upper - lower) / (start.high - start.low)
    zero = (-lower / scale) + ((-lower / scale).round() - (-lower / scale)).detach()
    whole = x / scale + ((x / scale).round() - x / scale).detach()
    return ((whole + zero).clamp(start.low, start.high) - zero) * scale


def test_slopes_are_autograds():
    spec = QuantSpec(bits=4, dynamic=False, grid="asymmetric_free")
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).double()
    start = affine(0.7 * x.amin(1, True), 0.6 * x.amax(1, True), spec)
    soft = SoftEnds(x, start, spec)
    soft.rows = x
    ends = (soft.alpha * start.scale).clone().requires_grad_()
    factor = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)).double()
    values = x.clone().requires_grad_()
    made = naive(values, ends, start, spec)
    torch.testing.assert_close(made.detach(), soft.grid.round(x))
    expected = torch.autograd.grad((made * factor).sum(), [ends, values])
    soft.learn(factor, 0.0, 2.0)
    torch.testing.assert_close(soft.alpha.grad.double(), expected[0] * start.scale, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slopes(x, soft.grid)[2] * factor, expected[1])


@pytest.mark.parametrize("grid", ["asymmetric", "asymmetric_free"])
def test_they_start_where_ranges_are(grid):
    spec = QuantSpec(bits=4, granularity="tensor", grid=grid, dynamic=False)
    x = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(0)) + 0.3
    start = affine(x.amin().view(1, 1) / 2, x.amax().view(1, 1) / 2, spec)
    module = StaticQuantizer(spec, start)
    own = LearnedEnds(module)
    assert torch.equal(own(x), module(x))
    assert torch.equal(own.numbers, torch.cat([start.scale, start.zero_point], 1))
    weight = x.view(-1, 8)
    assert torch.equal(SoftEnds(weight, start, spec).hard().codes, Rounded.of(weight, start, spec).codes)
    with torch.no_grad():
        own.value[:, 1] = own.value[:, 0] - 5
    own.bound()
    assert own.numbers[0, 0] > 0


def ranged(iterations=10):
    how = Boundaries(iterations=iterations, batch_size=6, rate=0.05, step_rate=0.2)
    return recipe(how, ALL, attention=OPERANDS, bits=(4, 4))


def test_no_iteration_is_nearest_and_some_come_nearer_to_full_precision(tiny_model):
    data, errors = points(6), []
    for how in (
        Nearest(),
        Boundaries(iterations=0),
        Boundaries(iterations=40, rate=0.05, step_rate=0.05, batch_size=6),
    ):
        made = quantize(tiny_model, recipe(how, BLOCKS, bits=(3, 4)), lambda: data)
        with torch.no_grad():
            exact = tiny_model.denoise(data.x, data.t, data.y)
            with made.installed(tiny_model):
                errors.append((tiny_model.denoise(data.x, data.t, data.y) - exact).square().mean().item())
    assert errors[0] == errors[1]
    assert errors[2] < 0.9 * errors[0]


def test_a_unit_that_ends_worse_stays_and_the_message_names_the_rounding(tiny_model, caplog):
    wild = Boundaries(iterations=2, batch_size=6, rate=100.0, step_rate=0.0)
    data = points(6)
    made, plain = (quantize(tiny_model, recipe(how, ["qkv"]), lambda: data) for how in (wild, Nearest()))
    assert all(torch.equal(value, codes(made)[name]) for name, value in codes(plain).items())
    assert "boundaries: block_000 stays at nearest" in caplog.text


def test_a_killed_fit_goes_on_and_zero_points_are_saved(tiny_model, tmp_path, monkeypatch):
    data, learned = points(6), []
    original = Session.learn
    monkeypatch.setattr(Session, "learn", lambda self, unit, *a: learned.append(unit.name) or original(self, unit, *a))
    whole = quantize(tiny_model, ranged(), lambda: data, tmp_path / "fit")
    count = len(learned)
    (tmp_path / "fit" / "block_001.safetensors").unlink()
    again = quantize(tiny_model, ranged(), lambda: data, tmp_path / "fit")
    assert learned[count:] == ["block_001"]
    plain = quantize(tiny_model, ranged(iterations=0), lambda: data)
    for found in (codes, steps, zeros):
        assert all(torch.equal(value, found(again)[name]) for name, value in found(whole).items())
    assert any(not torch.equal(value, zeros(plain)[name]) for name, value in zeros(whole).items())
    save(whole, tmp_path / "saved", provenance(tiny_model))
    with torch.no_grad():
        outputs = []
        for made in (whole, load(tmp_path / "saved", tiny_model)):
            with made.installed(tiny_model):
                outputs.append(tiny_model.denoise(data.x, data.t, data.y))
    assert torch.equal(*outputs)


def zeros(quantized):
    """The zero points of static quantizers."""
    return {
        f"{name}.{path}": module.zero_point
        for name, layer in {**quantized.layers, **quantized.attention}.items()
        for path, module in layer.named_modules()
        if isinstance(module, StaticQuantizer)
    }


def test_grids_without_two_ends_are_refused_as_weights_and_learn_a_step_as_inputs(tiny_model):
    symmetric = recipe(Boundaries(iterations=1), BLOCKS, weight={"grid": "symmetric"})
    with pytest.raises(UserError, match="grid=symmetric has no two"):
        quantize(tiny_model, symmetric, lambda: points(4))
    inputs = recipe(Boundaries(iterations=2), BLOCKS, activation=replace(STATIC, grid="symmetric"))
    made = quantize(tiny_model, inputs, lambda: points(4))
    assert all((zero == 0).all() for zero in zeros(made).values())


def test_passion_sr_learns_channels_first_and_ranges_then(tiny_model):
    words = ["quantizer=passion_sr", "bits=w6a6", "rounding.iterations=2", "transform.iterations=2"]
    made = build_recipe(config(*words))
    assert made is not None
    assert made.problems(tiny_model.sites()) == []
    found = quantize(tiny_model, made, lambda: points(6))
    assert made.transform.name == "learned"
    assert {site.role for site in tiny_model.sites() if site.name in found.layers} == set(ALL)
