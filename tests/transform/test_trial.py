"""Tried rounding is the recipe's, and the error of outputs is that of a plain loop."""

import pytest
import torch
from helpers.rewriting import BLOCKS, TRIAL, calibration, recipe

from qdit.activation import DynamicActivation, StaticActivation
from qdit.activation.regions import SidedInputs
from qdit.errors import UserError
from qdit.nn.patches import matrix
from qdit.quant.grid import fake_quantize
from qdit.quant.ranges import MSE, MinMax
from qdit.quant.spec import QuantSpec
from qdit.transform import Hadamard, Trial, trial
from qdit.transform.inputs import chosen_inputs, sample_rows
from qdit.transform.trial import OutputError, unchanged
from qdit.weight import WeightGrid

STATIC = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def site(model, role="ffn_up"):
    return next(s for s in model.sites() if s.role == role)


@pytest.mark.parametrize("rule", [MinMax(), MSE(candidates=10)], ids=["minmax", "mse"])
@pytest.mark.parametrize(("granularity", "size"), [("row", None), ("group", 8), ("tensor", None)])
def test_a_weight_is_rounded_on_the_recipes_grid_and_each_of_a_batch_on_its_own(tiny_model, rule, granularity, size):
    grid = WeightGrid(granularity=granularity, grid="asymmetric", range=rule, group_size=size)
    made, weights = Trial(recipe(weight=grid)), random(3, 128, 32) * torch.tensor([1.0, 5, 0.1])[:, None, None]
    found = made.weight(site(tiny_model), weights)
    for weight, rounded in zip(weights, found, strict=True):
        assert torch.equal(rounded, fake_quantize(weight, grid.spec(4), grid.fit(weight, grid.spec(4))))


def test_inputs_are_rounded_as_the_recipe_would_a_token_a_group_or_all_rows(tiny_model):
    x = random(2, 7, 32)
    token = Trial(recipe()).input(site(tiny_model), x)
    assert torch.equal(token, fake_quantize(x, QuantSpec(bits=8)))
    static = Trial(recipe(activation=STATIC)).input(site(tiny_model), x)
    for one, rounded in zip(x, static, strict=True):
        assert torch.equal(rounded, fake_quantize(one, QuantSpec(bits=8, granularity="tensor")))
    groups = DynamicActivation(granularity="group", grid="symmetric", group_size=24)  # of which 8 divide 32 channels
    found = Trial(recipe(activation=groups)).input(site(tiny_model), x)
    assert torch.equal(found, fake_quantize(x, QuantSpec(bits=8, granularity="group", group_size=8, grid="symmetric")))


def test_sixteen_bits_pass_and_two_regions_are_one(tiny_model):
    x, weight, place = random(5, 32), random(8, 32), site(tiny_model)
    full = Trial(recipe((16, 16)))
    assert full.input(place, x) is x
    assert full.weight(place, weight) is weight
    assert Trial(recipe((4, 8))).of_weights.input(place, x) is x
    sided = DynamicActivation(granularity="row", grid="asymmetric", regions=SidedInputs(roles=["ffn_down"]))
    down, x = site(tiny_model, "ffn_down"), random(5, 128)
    found = Trial(recipe(activation=sided)).input(down, x)
    assert torch.equal(found, fake_quantize(x, QuantSpec(bits=8, granularity="tensor")))


def naive(made, model, read, x, factor, turn=unchanged):
    total = 0.0
    for reader in read.quantized:
        weight = matrix(model.denoiser.get_submodule(reader.name)).float()
        rounded = made.weight(reader, turn(weight * factor))
        total += (made.input(reader, turn(x / factor)) @ rounded.T - x @ weight.T).double().square().sum().item()
    return total


@pytest.mark.parametrize("activation", [None, STATIC], ids=["token", "tensor"])
def test_the_error_of_outputs_is_that_of_a_loop_whatever_fits_into_memory(tiny_model, monkeypatch, activation):
    made = Trial(recipe((4, 6), **({"activation": activation} if activation else {})))
    turn = Hadamard(name="hadamard", roles=BLOCKS, block=None, seed=0)
    for read in chosen_inputs(tiny_model, tiny_model.sites(), BLOCKS)[:3]:
        x = random(20, read.channels)
        factors = 4 ** random(5, read.channels, seed=1)
        change = turn.turn(tiny_model, read)
        one = {s.name: (change,) for s in read.quantized}
        both = {s.name: (unchanged, change) for s in read.quantized}
        plain = [naive(made, tiny_model, read, x, f) for f in factors]
        turned = [naive(made, tiny_model, read, x, f, change) for f in factors]
        expected = {"plain": plain, "turned": turned, "best": [min(p) for p in zip(plain, turned, strict=True)]}
        for values in (2**24, 1):
            monkeypatch.setattr(trial, "CANDIDATE_VALUES", values)
            found = {
                "plain": OutputError(made, tiny_model, read, x)(factors),
                "turned": OutputError(made.before(one), tiny_model, read, x)(factors),
                "best": OutputError(made.before(both), tiny_model, read, x)(factors),
            }
            for key, errors in found.items():
                torch.testing.assert_close(errors, torch.tensor(expected[key], dtype=torch.float64), rtol=1e-5, atol=0)


def test_ways_of_steps_one_after_the_other(tiny_model):
    name = site(tiny_model).name
    made = TRIAL.before({name: (unchanged, torch.neg)}).before({name: (lambda x: x + 1,)})
    assert [way(torch.ones(1)).item() for way in made.ways(site(tiny_model))] == [2, -2]
    assert made.ways(site(tiny_model, "ffn_down")) == (unchanged,)


def test_rows_are_a_sample_of_all_points_and_the_same_for_the_same_seed(tiny_model):
    inputs = chosen_inputs(tiny_model, tiny_model.sites(), ["ffn_up", "adaln"])
    every = sample_rows(tiny_model, inputs, calibration(), 10**6, 0)
    found, again, other = (sample_rows(tiny_model, inputs, calibration(), 20, seed) for seed in (0, 0, 1))
    for read in inputs:
        tokens = read.quantized[0].tokens
        assert every[read.name].shape == (6 * tokens, read.channels)
        assert found[read.name].shape == (min(20, 6 * tokens), read.channels)
        assert torch.equal(found[read.name], again[read.name])
        places = (found[read.name][:, None] == every[read.name]).all(-1).nonzero()[:, 1]
        assert places.diff().gt(0).all()
    up = inputs[-1].name
    assert not torch.equal(found[up], other[up])


def test_inputs_that_are_not_finite_are_refused(tiny_model):
    (read, *_) = chosen_inputs(tiny_model, tiny_model.sites(), ["ffn_up"])
    with pytest.raises(UserError, match="are not finite; try dtype=float32"):
        OutputError(TRIAL, tiny_model, read, torch.full((2, 32), float("nan")))
