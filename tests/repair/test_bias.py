"""Bias correction: the golden example, means that vanish, the squared error that falls by theirs, and runs with it."""

import pytest
import torch
from helpers.configs import config
from helpers.text_models import load as load_family
from helpers.text_models import points as family_points
from helpers.timed import error, output, points, recipe, static
from torch import nn

from qdit.calibration.observers import watching
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.ledger import ledger
from qdit.method import quantize
from qdit.nn.linear import QuantLinear
from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.affine import Affine
from qdit.quant.grid import Rounded
from qdit.quant.spec import QuantSpec
from qdit.repair import BiasRepair
from qdit.repair.bias import Mean, move, rows_of
from qdit.rounding import GPTQ, AdaRound
from qdit.runs.identity import run_id
from qdit.runs.parts import build_recipe
from qdit.runs.stages import rounding_folder
from qdit.scope import Scope

ALONE, IN_ORDER = BiasRepair(), BiasRepair(inputs="quantized")


def test_golden_the_mean_error_vanishes_and_the_squared_error_falls_by_its_square():
    x = torch.tensor([[1.0, 2], [3, 4]])
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.6, -0.4], [1, 0.3]]))

    def grid(step):
        return Affine(torch.tensor([[step]]), torch.zeros(1, 1), -4, 3)

    spec = QuantSpec(bits=3, granularity="tensor", grid="symmetric", dynamic=False)
    rounded = Rounded.of(linear.weight.detach(), grid(0.3), spec)
    layer = QuantLinear(linear, rounded, StaticQuantizer(spec, grid(1.5)))
    torch.testing.assert_close(layer.quantizer(x), torch.tensor([[1.5, 1.5], [3, 4.5]]))
    torch.testing.assert_close(layer.weight, torch.tensor([[0.6, -0.3], [0.9, 0.3]]))
    with torch.no_grad():
        before, mean = layer(x) - linear(x), Mean()
        mean.add(before)
        torch.testing.assert_close(mean.value().float(), torch.tensor([0.45, 0.025]))
        move(layer, mean.value())
        after = layer(x) - linear(x)
    assert after.mean(0).abs().max() < 1e-6
    fall = before.square().mean(0) - after.square().mean(0)
    torch.testing.assert_close(fall, before.mean(0).square())


@pytest.mark.parametrize("repair", [ALONE, IN_ORDER], ids=["alone", "in order"])
def test_data_that_are_collected_at_last_are_not_watched(tiny_model, repair):
    """Where nothing before needed data: they are sampled by the very network that is repaired."""
    data = points()

    def collect():
        with torch.no_grad():
            tiny_model.denoise(data.x, data.t, data.y)
        return data

    found, expected = (
        output(tiny_model, quantize(tiny_model, recipe(static(), bits=(4, 16), repair=repair), source))
        for source in (collect, points)
    )
    assert torch.equal(found, expected)


def test_a_layer_without_a_bias_gets_one_and_means_are_of_all_parts():
    layer = QuantLinear(nn.Linear(2, 3, bias=False), None, None)
    mean = Mean()
    for part in torch.arange(12.0).view(4, 3).split([1, 3]):
        mean.add(part)
    move(layer, mean.value())
    assert layer.bias.tolist() == [-4.5, -5.5, -6.5]


def errors(model, quantized, data):
    """The mean error of each site for the original network's inputs."""
    found = {name: Mean() for name in quantized.layers}

    def see(site, layer, x, z):
        own = quantized.layers[site.name]
        found[site.name].add(rows_of(own, own(x)) - rows_of(layer, z))

    with watching(model, [s for s in model.sites() if s.name in found], see), torch.no_grad():
        model.denoise(data.x, data.t, data.y)
    return {name: mean.value() for name, mean in found.items()}


EVERYTHING = {"scope": Scope(roles=["qkv", "attn_out", "ffn_up", "ffn_down", "adaln", "embedder", "final"])}


def test_no_layer_is_off_on_the_mean_and_codes_stay(tiny_model):
    plain = quantize(tiny_model, recipe(static(), bits=(4, 4), **EVERYTHING), points)
    made = quantize(tiny_model, recipe(static(), bits=(4, 4), repair=ALONE, **EVERYTHING), points)
    for name, mean in errors(tiny_model, made, points()).items():
        assert mean.abs().max() < 1e-5, name
    assert max(mean.abs().max() for mean in errors(tiny_model, plain, points()).values()) > 1e-2
    assert all(torch.equal(layer.weight, made.layers[name].weight) for name, layer in plain.layers.items())
    assert made.policy == plain.policy
    costs = [ledger(tiny_model.denoiser, tiny_model.sites(), each.policy) for each in (plain, made)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("repair", [ALONE, IN_ORDER], ids=["alone", "in_order"])
def test_the_network_is_nearer_to_full_precision(tiny_model, repair):
    plain, made = (
        quantize(tiny_model, recipe(static(), bits=(3, 8), repair=each, **EVERYTHING), points)
        for each in (None, repair)
    )
    assert error(tiny_model, made, points()) < error(tiny_model, plain, points())


def test_in_order_the_network_s_output_has_the_mean_of_full_precision(tiny_model):
    made = quantize(tiny_model, recipe(static(), bits=(4, 4), repair=IN_ORDER, **EVERYTHING), points)
    off = (output(tiny_model, made, points()) - output(tiny_model, None, points())).mean((0, 2, 3))
    plain = quantize(tiny_model, recipe(static(), bits=(4, 4), **EVERYTHING), points)
    before = (output(tiny_model, plain, points()) - output(tiny_model, None, points())).mean((0, 2, 3))
    assert off.abs().max() < 1e-4 < before.abs().max()


def test_in_16_bits_nothing_moves(tiny_model):
    for repair in (ALONE, IN_ORDER):
        made = quantize(tiny_model, recipe(static(), bits=(16, 16), repair=repair), points)
        for name, layer in made.layers.items():
            own = tiny_model.denoiser.get_submodule(name).bias
            torch.testing.assert_close(layer.bias, own, atol=2e-6, rtol=0)


@pytest.mark.parametrize("words", [["quantizer=ptq4dit"], ["quantizer=qdit_w4a4"], ["quantizer=viditq_v1"]])
@pytest.mark.parametrize("inputs", ["full_precision", "quantized"])
def test_every_recipe_takes_it_and_a_checkpoint_keeps_it(tiny_model, words, inputs, tmp_path):
    small = ["weight.group_size=16", "activation.group_size=16"] if words == ["quantizer=qdit_w4a4"] else []
    small += ["rounding.iterations=2"] if words == ["quantizer=ptq4dit"] else []
    made_of = build_recipe(config(*words, *small, "repair=bias", f"repair.inputs={inputs}", "bits=w4a8"))
    assert made_of is not None
    refused = inputs == "quantized" and words == ["quantizer=viditq_v1"]  # its ranges of timesteps are fitted apart
    assert bool(made_of.problems(tiny_model.sites())) == refused
    if refused:
        return
    made = quantize(tiny_model, made_of, points)
    found = output(tiny_model, made)
    save(made, tmp_path, provenance(tiny_model))
    assert torch.equal(output(tiny_model, load(tmp_path, tiny_model)), found)


def test_text_that_is_not_attended_does_not_count(tmp_path):
    """Prompts are padded; rows that nothing depends on move no bias."""
    model = load_family("pixart_sigma", tmp_path)
    data = family_points(model, 6)
    made = quantize(model, recipe(static(), bits=(4, 4), repair=ALONE), lambda: data)
    found = {name: Mean() for name in made.layers}

    def see(site, layer, x, z):
        own, attended = made.layers[site.name], model.attended(site.name, data.y)
        off = rows_of(own, own(x)) - rows_of(layer, z)
        found[site.name].add(off if attended is None else off[attended])

    with watching(model, [s for s in model.sites() if s.name in found], see), torch.no_grad():
        model.denoise(data.x, data.t, data.y)
    assert max(mean.value().abs().max() for mean in found.values()) < 1e-5


def test_a_run_without_it_has_the_id_it_had_and_rounds_once_for_both():
    plain, with_it = config("quantizer=q_dit"), config("quantizer=q_dit", "repair=bias")
    before = {key: value for key, value in plain.items() if key != "repair"}
    assert run_id(before) == run_id(plain) != run_id(with_it)
    assert rounding_folder(plain) == rounding_folder(with_it)


def test_the_same_fit_gives_the_same_bytes(tiny_model, tmp_path):
    for rounding in (GPTQ(), AdaRound(iterations=2)):
        part = recipe(static(), bits=(4, 8), repair=IN_ORDER, rounding=rounding)
        place = tmp_path / type(rounding).__name__
        first, resumed = (quantize(tiny_model, part, points, place) for _ in range(2))
        for name, layer in first.layers.items():
            assert torch.equal(layer.bias, resumed.layers[name].bias)


def test_in_order_it_is_refused_beside_a_search_that_puts_layers_into_other_networks(tiny_model):
    words = ["quantizer=q_dit", "search=evolution_small", "repair=bias", "weight.group_size=16", "bits=w4a8"]
    for inputs, refused in (("quantized", True), ("full_precision", False)):
        made = build_recipe(config(*words, f"repair.inputs={inputs}"))
        assert made is not None
        assert ("a search puts them into others" in " ".join(made.problems(tiny_model.sites()))) == refused


def test_it_asks_for_data(tiny_model):
    made = build_recipe(config("quantizer=rtn", "repair=bias", "calibration=none"))
    assert made is not None
    assert "repair needs data" in made.problems(tiny_model.sites())[0]
