"""The numbers of static grids under search: both schemes of an input (Q-HyViT), against a naive search."""

import pytest
import torch
from helpers.configs import config
from helpers.timed import UP, output, points, recipe, static

from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.errors import UserError
from qdit.hessian import Hessian, Unweighted
from qdit.hessian.grids import candidates, symmetric
from qdit.hessian.pearson import Pearson
from qdit.method import quantize
from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.affine import affine, nearest
from qdit.quant.books import Uniform
from qdit.quant.grid import fake_quantize
from qdit.quant.regions import TwoSided
from qdit.quant.spec import QuantSpec
from qdit.runs.identity import run_id
from qdit.runs.parts import build_recipe
from qdit.weight import WeightGrid


def rule(**changes):
    return Hessian(**{"target": Unweighted(), "candidates": 10, "alpha": 0.3, "rounds": 1, "tokens": 4096} | changes)


def test_golden_zero_points_of_a_range_above_0():
    """8 bits of [2, 3]: clamped, all is lost; qdit's asymmetric grids hold 0, or do not clamp."""
    x = torch.tensor([2, 2.25, 2.5, 3]).view(1, -1)
    made = {
        grid: fake_quantize(x, QuantSpec(bits=8, grid=grid)).flatten().tolist()
        for grid in ("asymmetric_clamped", "asymmetric", "asymmetric_free")
    }
    assert made["asymmetric_clamped"] == pytest.approx([1.0] * 4, abs=1e-6)
    assert made["asymmetric"][:3] == pytest.approx([2, 2.247059, 2.494118], abs=1e-6)
    assert made["asymmetric_free"][1] == pytest.approx(2.25098, abs=1e-6)
    assert made["asymmetric_free"][2] == pytest.approx(2.5, abs=0.5 / 255 + 1e-6)  # halfway between two values


@pytest.mark.parametrize("ends", [(-0.5, 3.0), (-4.0, 1.0), (0.0, 2.0)])
def test_the_symmetric_grid_is_the_one_of_the_same_reach(ends):
    lo, hi = (torch.tensor([[end]]) for end in ends)
    spec = QuantSpec(bits=6, granularity="tensor", dynamic=False)
    start = affine(lo, hi, spec)
    found = symmetric(torch.cat([start.scale, start.zero_point], 1), Uniform(start.low, start.high))
    reach = torch.maximum(-lo, hi)
    expected = affine(-reach, reach, QuantSpec(bits=6, granularity="tensor", grid="symmetric_full", dynamic=False))
    assert found[0, 1] == expected.zero_point
    # The end is known to half a step, as the zero point is an integer.
    assert (found[0, 0] - expected.scale).abs() * 63 / 2 <= start.scale / 2 + 1e-6


def test_only_grids_with_a_zero_point_have_two_schemes():
    numbers, searched = torch.tensor([[0.1, 3.0], [0.2, 8.0]]), rule(scheme="searched")
    table = candidates(Uniform(0, 15), numbers, searched)
    assert torch.equal(table[:11], candidates(Uniform(0, 15), numbers, rule())[:11])
    assert len(table) == 24
    assert (table[12:, :, 1] == 8).all()
    assert len(candidates(TwoSided(4), torch.tensor([[0.1, 0.1]]), searched)) == 12


def test_an_input_gets_the_scheme_and_range_of_least_error(tiny_model):
    """Tried one by one on the layer's output, in full precision but for its input."""
    own = rule(scheme="searched")
    fitted = quantize(tiny_model, recipe(static(range=own), bits=(16, 4)), points)
    layer, seen = tiny_model.denoiser.get_submodule(UP), []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    data = points()
    with torch.no_grad():
        tiny_model.denoise(data.x, data.t, data.y)
    handle.remove()
    x, spec = seen[0], QuantSpec(bits=4, granularity="tensor", dynamic=False)
    grid = affine(x.amin().view(1, 1), x.amax().view(1, 1), spec)
    table = candidates(Uniform(0, 15), torch.cat([grid.scale, grid.zero_point], 1), own)[:, 0]
    errors = [((nearest(x, scale, zero, 0, 15) - x) @ layer.weight.T).square().sum() for scale, zero in table]
    found = fitted.layers[UP].quantizer
    assert isinstance(found, StaticQuantizer)
    best = table[int(torch.stack(errors).argmin())]
    torch.testing.assert_close(torch.cat([found.scale, found.zero_point], 1)[0], best)


def test_the_recipe_has_both_schemes_resumes_and_is_saved(tiny_model, tmp_path, monkeypatch):
    small = [f"{g}.range.{k}" for g in ("weight", "activation", "attention") for k in ("rounds=1", "tokens=64")]
    few = [f"{g}.range.candidates=4" for g in ("weight", "activation", "attention")]
    made_of = build_recipe(config("quantizer=q_hyvit", "bits=w6a6", *small, *few))
    assert made_of is not None
    assert made_of.problems(tiny_model.sites()) == []
    made = quantize(tiny_model, made_of, points, tmp_path / "fit")
    middles = {
        bool(layer.quantizer.zero_point.item() == 32)
        for layer in made.layers.values()
        if isinstance(layer.quantizer, StaticQuantizer)
    }
    assert middles == {True, False}
    found = output(tiny_model, made)
    monkeypatch.setattr("qdit.hessian.blockwise.BlockSearch.run", None)  # what was finished is not searched again
    assert torch.equal(output(tiny_model, quantize(tiny_model, made_of, points, tmp_path / "fit")), found)
    save(made, tmp_path / "saved", provenance(tiny_model))
    assert torch.equal(output(tiny_model, load(tmp_path / "saved", tiny_model)), found)


def test_schemes_are_of_inputs_with_zero_points_and_of_no_id_that_was(tiny_model):
    searched = rule(scheme="searched")
    weights = WeightGrid(granularity="tensor", grid="symmetric_full", range=searched)
    problems = recipe(static(range=rule()), weight=weights).problems(tiny_model.sites())
    assert any("use weight.range.scheme=fixed" in each for each in problems)
    for own in (searched, Pearson(scheme="searched")):
        (problem,) = recipe(static(range=own, grid="symmetric")).problems(tiny_model.sites())
        assert "activation.grid=symmetric is another; use activation.grid=asymmetric" in problem
    assert "scheme" not in repr(rule())
    plain = config("quantizer=tq_dit")
    before = {k: dict(v) if isinstance(v, dict) else v for k, v in plain.items()}
    kept = {k: v for k, v in plain["activation"]["range"].items() if k != "scheme"}
    before["activation"] = {**plain["activation"], "range": kept}
    assert run_id(before) == run_id(plain)
    with pytest.raises(UserError, match="scheme"):
        build_recipe(config("quantizer=tq_dit", "activation.range.scheme=both"))
