"""Ranges by the error of a block's output: the golden example, a naive loop, and a recipe that has them."""

import pytest
import torch
from helpers import text_models
from helpers.configs import config
from helpers.timed import error, output, points, recipe, static

from qdit.attention import UnsignedProbabilities
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.errors import UserError
from qdit.hessian import Hessian, Probe, Unweighted
from qdit.hessian.blockwise import BlockSearch, block_sites, kept_error, relative
from qdit.method import quantize
from qdit.nn.linear import QuantLinear
from qdit.nn.replace import replaced
from qdit.quant.grid import Rounded
from qdit.quant.ranges import MinMax
from qdit.quant.spec import QuantSpec
from qdit.runs.identity import run_id
from qdit.runs.parts import build_recipe
from qdit.scope import Scope
from qdit.weight import WeightGrid

UP = "transformer_blocks.1.ff.net.0.proj"


def test_golden_elimination_lets_the_large_error_decide():
    even, one, ones = torch.full((4,), 0.6), torch.tensor([0, 0, 0, 1.15]), torch.ones(4)
    assert [kept_error(x, ones, 0.0).item() for x in (even, one)] == pytest.approx([1.44, 1.3225])
    assert [kept_error(x, ones, 0.5).item() for x in (even, one)] == pytest.approx([0.72, 1.3225])
    one[0] = torch.nan
    assert all(kept_error(one, ones, share).isinf() for share in (0.0, 0.5))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_smallest_errors_are_left_out_whatever_they_weigh(share):
    change = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(7, 30, generator=torch.Generator().manual_seed(1))
    order = change.abs().flatten().argsort()[int(share * 210) :]
    expected = (weights * change.square()).flatten()[order].sum()
    assert kept_error(change, weights, share).item() == pytest.approx(expected.item(), rel=1e-5)


def test_golden_probabilities_on_a_linear_grid():
    part = UnsignedProbabilities(range=MinMax(), bits=4)
    p = torch.tensor([0.6, 0.2, 0.1, 0.05, 0.03, 0.02])
    spec = QuantSpec(bits=4, granularity="tensor", grid="unsigned", dynamic=False)
    made = part.book(4)(p, *part.numbers(p, spec))
    torch.testing.assert_close(made, torch.tensor([0.6, 0.2, 0.08, 0.04, 0.04, 0.0]))
    assert (made - p).square().mean().item() == pytest.approx(1.6667e-4, rel=1e-3)


def by_block(**changes):
    how = {"target": Unweighted(), "candidates": 6, "alpha": 0.4, "rounds": 1, "tokens": 64, "unit": "block"} | changes
    return WeightGrid(granularity="tensor", grid="symmetric_full", range=Hessian(**how))


def test_the_multiple_of_a_weight_is_the_one_of_least_error_behind_the_block(tiny_model):
    """Of the last layer of a block that no other reading follows: tried one by one in the whole network."""
    fitted = quantize(tiny_model, recipe(static(), bits=(3, 16), weight=by_block(eliminate=0.5)), points)
    full, own = tiny_model.denoiser.get_submodule(UP), fitted.layers[UP].rounded
    spec, seen = own.spec, []
    block = tiny_model.denoiser.transformer_blocks[1]
    handle = block.register_forward_hook(lambda m, a, out: seen.append(out))
    plain, data = WeightGrid(granularity="tensor", grid="symmetric_full", range=MinMax()), points()
    start, scores = plain.fit(full.weight, spec), {}
    with torch.no_grad():
        tiny_model.denoise(data.x, data.t, data.y)
        for factor in by_block().range.factors().tolist():
            rounded = Rounded.of(full.weight, start.scaled(torch.tensor([[factor]])), spec)
            with replaced(tiny_model.denoiser, {UP: QuantLinear(full, rounded, None)}):
                tiny_model.denoise(data.x, data.t, data.y)
            sizes = (seen[-1] - seen[0]).abs().flatten().sort().values
            scores[factor] = sizes[len(sizes) // 2 :].square().sum().item()
    handle.remove()
    assert own.grid.scale.item() / start.scale.item() == pytest.approx(min(scores, key=scores.__getitem__), rel=1e-5)
    assert min(scores, key=scores.__getitem__) != 1.0


def test_a_recipe_runs_resumes_and_is_saved(tiny_model, tmp_path, monkeypatch):
    words = [f"{g}.range.{k}" for g in ("weight", "activation") for k in ("candidates=4", "rounds=1", "tokens=64")]
    made_of = build_recipe(config("quantizer=apq_vit", "bits=w6a6", *words))
    assert made_of is not None
    assert made_of.problems(tiny_model.sites()) == []
    made = quantize(tiny_model, made_of, points, tmp_path / "fit")
    found = output(tiny_model, made)
    monkeypatch.setattr(BlockSearch, "run", None)  # what was finished is not searched again
    assert torch.equal(output(tiny_model, quantize(tiny_model, made_of, points, tmp_path / "fit")), found)
    save(made, tmp_path / "saved", provenance(tiny_model))
    assert torch.equal(output(tiny_model, load(tmp_path / "saved", tiny_model)), found)


def test_groups_of_timesteps_choose_by_themselves_and_unit_layer_is_as_before(tiny_model):
    rule = Hessian(target=Probe(), candidates=4, rounds=1, tokens=64, unit="block")
    from qdit.activation import EqualGroups

    made = quantize(
        tiny_model, recipe(static(range=rule, time=EqualGroups(groups=2), grid="symmetric"), bits=(16, 4)), points
    )
    assert made.layers[UP].quantizer.numbers.shape == (2, 1, 2)
    assert repr(Hessian(target=Probe())) == repr(Hessian(target=Probe(), unit="layer", eliminate=0.0))
    assert "unit" not in repr(Hessian(target=Probe()))
    plain = config("quantizer=tq_dit")
    before = {k: dict(v) if isinstance(v, dict) else v for k, v in plain.items()}
    for group in ("weight", "activation", "attention"):
        own = {key: value for key, value in plain[group]["range"].items() if key not in ("unit", "eliminate")}
        before[group] = {**before[group], "range": own}
    assert run_id(before) == run_id(plain)


def test_eliminations_without_blocks_are_refused():
    with pytest.raises(UserError, match="use unit=block"):
        Hessian(target=Probe(), eliminate=0.5)


@pytest.mark.parametrize(("family", "target"), [("sd3", Probe()), ("sd3", Unweighted()), ("flux2_klein", Probe())])
def test_image_and_text_of_a_block_are_weighed_together(family, target, tmp_path):
    """The importances are squared gradients of both; the chosen multiples are closer than the whole range's."""
    model = text_models.load(family, tmp_path)
    data = text_models.points(model, 4)
    roles = ["qkv", "text_qkv", "attn_out", "text_out", "ffn_up", "text_up", "ffn_down", "text_down", "parallel_in"]
    whole = WeightGrid(granularity="tensor", grid="symmetric_full", range=MinMax())
    fitted, plain = (
        quantize(model, recipe(static(), bits=(3, 16), weight=weight, scope=Scope(roles=roles)), lambda: data)
        for weight in (by_block(target=target), whole)
    )
    assert error(model, fitted, data) < error(model, plain, data)
    scales = [{name: layer.rounded.grid.scale for name, layer in made.layers.items()} for made in (fitted, plain)]
    assert not all(torch.equal(scale, scales[1][name]) for name, scale in scales[0].items())


def test_importances_of_several_outputs_are_those_of_each(tmp_path):
    model = text_models.load("sd3", tmp_path)
    data = text_models.points(model, 2)
    block = block_sites(model)["transformer_blocks.0"]
    found = Probe(probes=1).importances(model, data, [block], 0)[block.name]
    text, image = found.parts  # as SD3's blocks return them
    seen = []
    handle = model.denoiser.transformer_blocks[0].register_forward_hook(
        lambda m, a, out: seen.append([x.detach().requires_grad_() for x in out]) or tuple(seen[-1])
    )
    output = model.denoise(data.x, data.t, data.y)
    handle.remove()
    (slope,) = Probe(probes=1).slopes(output.detach(), torch.arange(2), 0)
    squares = [g.square() for g in torch.autograd.grad(output, seen[0], slope)]
    for own, expected in zip((text, image), squares, strict=True):
        torch.testing.assert_close(own.rows, expected.mean(-1))
        torch.testing.assert_close(own.channels, expected.mean((0, 1)))
    weights = relative(found, torch.arange(2), 2)
    assert sum(w.sum() for w in weights) / sum(w.numel() for w in weights) == pytest.approx(1, rel=1e-3)
