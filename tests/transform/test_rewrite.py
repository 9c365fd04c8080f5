"""Scaled networks on the tiny DiT: exact, folded or not; the original untouched; every part in the new basis."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qdit.activation import DynamicActivation, StaticActivation
from qdit.calibration import CalibrationData, NoCalibration
from qdit.diagnose import Trajectory, layer_report
from qdit.dry import transform_text
from qdit.errors import UserError
from qdit.model.base import Producer
from qdit.model.dit import list_producers, list_sites
from qdit.quant.ranges import MinMax
from qdit.quantize import Recipe, quantize
from qdit.rounding import GPTQ, Nearest
from qdit.scope import Scope
from qdit.search import ILP, Hessian
from qdit.search.base import Bench
from qdit.search.budget import MeanGroup
from qdit.search.variants import Variants
from qdit.transform import ChannelScaling, rewritten
from qdit.transform.statistics import Maximum, MiddleTimestep, PerRow, PerTimestep
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]
EVERYTHING = [*BLOCKS, "adaln", "embedder", "final"]
STATISTICS = [Maximum(), MiddleTimestep(), PerTimestep(), PerRow()]


def points(seed, n=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, 8, 8, generator=generator)
    return CalibrationData(x, torch.linspace(0, 999, n).long(), torch.arange(n) % 10, 4)


def calibration():
    return points(0)


def scaling(roles=EVERYTHING, statistic=None):
    return ChannelScaling(name="salience", roles=roles, alpha=0.5, statistic=statistic or PerTimestep())


def recipe(bits=(4, 8), roles=BLOCKS, **changes):
    given = {
        "scope": Scope(roles=roles),
        "weight": WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
        "activation": DynamicActivation(granularity="row", grid="asymmetric"),
        "rounding": Nearest(),
        "transform": scaling(roles),
        "calibration": None,
    }
    return Recipe(**given | changes, weight_bits=bits[0], activation_bits=bits[1])


@torch.no_grad()
def output(model, installed=None):
    """The network's output on points that no calibration has seen."""
    unseen = points(1)
    if installed is None:
        return model.denoise(unseen.x, unseen.t, unseen.y)
    with installed.installed(model):
        return model.denoise(unseen.x, unseen.t, unseen.y)


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def wild_factors(transform, model):
    """Factors between 1/8 and 8 for every input, far from what balancing would choose."""
    generator = torch.Generator().manual_seed(3)
    return {
        each.name: 8 ** (2 * torch.rand(each.readers[0].in_features, generator=generator) - 1)
        for each in transform.inputs(model, model.sites())
    }


def unable_to_fold(model, monkeypatch):
    monkeypatch.setattr(model, "producers", dict)
    return model


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: type(s).__name__)
def test_folded_and_unfolded_and_original_networks_are_equal(tiny_model, monkeypatch, statistic):
    transform, sites, original = scaling(statistic=statistic), tiny_model.sites(), output(tiny_model)
    folded = rewritten(transform, tiny_model, sites, calibration, None)
    assert_same(output(tiny_model, folded), original)
    unfolded = rewritten(transform, unable_to_fold(tiny_model, monkeypatch), sites, calibration, None)
    assert_same(output(tiny_model, unfolded), original)
    assert folded.inputs.keys() < unfolded.inputs.keys() == {s.name for s in sites}


def test_wild_factors_fold_exactly_and_leave_no_division(tiny_model):
    transform = scaling(["qkv", "attn_out", "ffn_up"])
    rewrite = transform.rewrite(tiny_model, tiny_model.sites(), wild_factors(transform, tiny_model))
    assert rewrite.inputs == {}
    assert all(type(layer) is nn.Linear for layer in rewrite.layers.values())
    assert_same(output(tiny_model, rewrite), output(tiny_model))


def test_a_fold_without_its_bias_term_is_caught(tiny_model, monkeypatch):
    """The rows of 1 + γ, scaled as if they entered as they are: b - 1 is missing in their bias."""
    transform, sites = scaling(["qkv"]), tiny_model.sites()
    wrong = {n: Producer(p.layer, p.linear + p.one_plus) for n, p in tiny_model.producers().items()}
    monkeypatch.setattr(tiny_model, "producers", lambda: wrong)
    rewrite = transform.rewrite(tiny_model, sites, wild_factors(transform, tiny_model))
    assert (output(tiny_model, rewrite) - output(tiny_model)).abs().max() > 0.1


def test_gates_are_untouched_and_shift_and_scale_are_not(tiny_model):
    transform = scaling(["qkv", "ffn_up"])
    rewrite = transform.rewrite(tiny_model, tiny_model.sites(), wild_factors(transform, tiny_model))
    name = "transformer_blocks.0.norm1.linear"
    before, after = tiny_model.denoiser.get_submodule(name), rewrite.layers[name]
    pairs = [(a.chunk(6), b.chunk(6)) for a, b in ((before.weight, after.weight), (before.bias, after.bias))]
    for old, new in pairs:
        assert [torch.equal(a, b) for a, b in zip(old, new, strict=True)] == [False, False, True, False, False, True]


def test_readers_that_stay_in_full_precision_take_the_folded_factor_too(tiny_model):
    transform, name = scaling(["qkv"]), "transformer_blocks.0.attn1.to_k"
    quantized = [s for s in tiny_model.sites() if s.name != name]
    rewrite = transform.rewrite(tiny_model, quantized, wild_factors(transform, tiny_model))
    assert name in rewrite.layers
    assert_same(output(tiny_model, rewrite), output(tiny_model))


def test_dead_channels_stay_finite_and_exact(tiny_model):
    with torch.no_grad():
        for block in tiny_model.denoiser.transformer_blocks:
            block.attn1.to_v.weight[3] = block.attn1.to_v.bias[3] = 0  # the attention's output is 0 there
            block.ff.net[0].proj.weight[:, 5] = 0  # nobody reads this channel
    rewrite = rewritten(scaling(), tiny_model, tiny_model.sites(), calibration, None)
    assert_same(output(tiny_model, rewrite), output(tiny_model))
    with torch.no_grad():
        tiny_model.denoiser.transformer_blocks[0].ff.net[0].proj.weight.zero_()
    rewrite = rewritten(scaling(), tiny_model, tiny_model.sites(), calibration, None)
    assert_same(output(tiny_model, rewrite), output(tiny_model))


@pytest.mark.parametrize("roles", [BLOCKS, EVERYTHING])
@pytest.mark.parametrize("rounding", [Nearest(), GPTQ(), GPTQ(inputs="full_precision", order="sequential")])
def test_full_precision_is_bit_identical_after_a_fit(tiny_model, roles, rounding):
    before, modules = output(tiny_model), dict(tiny_model.denoiser.named_modules())
    parameters = {n: p.clone() for n, p in tiny_model.denoiser.named_parameters()}
    static = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())
    quantized = quantize(tiny_model, recipe(roles=roles, rounding=rounding, activation=static), calibration)
    assert output(tiny_model, quantized).isfinite().all()
    assert dict(tiny_model.denoiser.named_modules()) == modules
    assert all(torch.equal(p, parameters[n]) for n, p in tiny_model.denoiser.named_parameters())
    assert torch.equal(output(tiny_model), before)


@pytest.mark.parametrize("roles", [BLOCKS, EVERYTHING])
def test_sixteen_bits_behind_a_transform_are_full_precision(tiny_model, roles):
    quantized = quantize(tiny_model, recipe((16, 16), roles), calibration)
    assert_same(output(tiny_model, quantized), output(tiny_model))


def test_static_ranges_and_weights_are_those_of_the_transformed_basis(tiny_model):
    """At 8 bits, a grid over the wrong basis would be many decibels worse than none at all."""
    static = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())
    parts = recipe((8, 8), activation=static)
    quantized = quantize(tiny_model, parts, calibration)
    for name, factor_at_run_time in (("attn1.to_q", False), ("ff.net.2", True)):
        path = f"transformer_blocks.1.{name}"
        seen = []
        layer = quantized.rewrite.layers[path]
        with quantized.rewrite.installed(tiny_model):
            handle = layer.register_forward_hook(lambda m, args, out, seen=seen: seen.append(args[0]))
            for batch in calibration().batches(tiny_model):
                tiny_model.denoise(*batch)
            handle.remove()
        x = torch.cat([s.flatten(0, -2) for s in seen])
        quantizer = quantized.layers[path].quantizer
        quantizer = quantizer.quantizer if not factor_at_run_time else quantizer  # q, k and v share theirs
        if factor_at_run_time:
            x, quantizer = quantizer[0](x), quantizer[1]
        expected = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 255
        torch.testing.assert_close(quantizer.scale.squeeze(), expected)
        error = quantized.layers[path].weight - layer.weight
        assert error.abs().max() <= (layer.weight.amax(1) - layer.weight.amin(1)).max() / 255


@pytest.mark.parametrize("rounding", [Nearest(), GPTQ()])
def test_outlier_channels_are_balanced_away(tiny_model, rounding):
    """Channels 50 times as large, undone in the weights: the network is the same, and harder to quantize."""
    transform = scaling(["qkv", "ffn_up", "attn_out"], Maximum())
    big = {each.name: torch.ones(32) for each in transform.inputs(tiny_model, tiny_model.sites())}
    for factor in big.values():
        factor[::8] = 1 / 50
    spoiled = transform.rewrite(tiny_model, tiny_model.sites(), big)
    original = output(tiny_model)
    for name, layer in spoiled.layers.items():
        tiny_model.denoiser.set_submodule(name, layer)
    assert_same(output(tiny_model), original)

    def error(transform):
        quantized = quantize(tiny_model, recipe((6, 6), rounding=rounding, transform=transform), calibration)
        return (output(tiny_model, quantized) - original).square().mean()

    assert error(transform) < error(None) / 4


def test_measurements_are_kept_for_a_resumed_fit(tiny_model, tmp_path):
    parts = recipe(rounding=GPTQ())
    first = quantize(tiny_model, parts, calibration, tmp_path)
    again = quantize(tiny_model, parts, lambda: pytest.fail("data was collected again"), tmp_path)
    assert all(torch.equal(again.layers[n].weight, layer.weight) for n, layer in first.layers.items())
    assert all(torch.equal(again.rewrite.layers[n].bias, m.bias) for n, m in first.rewrite.layers.items())
    with pytest.raises(UserError, match="is of another model or transform"):
        rewritten(scaling(["qkv"]), tiny_model, tiny_model.sites(), calibration, tmp_path)


@pytest.mark.parametrize("kind", [ILP, Hessian])
def test_searches_compare_in_the_transformed_basis(tiny_model, kind):
    """At 8 bits every error is small; in two bases it would be as large as the weight."""
    grouped = {"granularity": "group", "group_size": 16, "grid": "asymmetric"}
    search = kind(budget=MeanGroup(at_least=16), group_sizes=[16, 32])
    parts = recipe(
        (8, 8),
        weight=WeightGrid(**grouped, range=MinMax()),
        activation=DynamicActivation(**grouped),
        search=search,
    )
    space = search.space(parts, tiny_model.sites())
    bench = Bench(tiny_model, parts, space, search.budget.table(space), calibration, None)
    before = output(tiny_model)
    errors = search.errors(bench)
    assert torch.equal(output(tiny_model), before)
    if kind is ILP:
        assert max(max(error.values()) for error in errors) < 0.01
    variants = Variants(tiny_model, parts, calibration)
    assembled = variants.assembled(space, (16,) * len(space.genes))
    assert (output(tiny_model, assembled) - before).square().mean() < 1e-3 * before.square().mean()


def test_layers_are_reported_in_the_transformed_basis(tiny_model):
    quantized = quantize(tiny_model, recipe((8, 8), EVERYTHING), calibration)
    unseen = points(1)
    path = Trajectory(unseen.x[None], [500], unseen.x[None], unseen.y)
    rows = layer_report(tiny_model, quantized, path)
    assert len(rows) == len(tiny_model.sites())
    assert min(row["sqnr"] for row in rows) > 25


def test_data_is_asked_for(tiny_model):
    (problem,) = recipe(calibration=NoCalibration()).problems(tiny_model.sites())
    assert problem.startswith("transform needs data")


def test_a_plan_says_what_is_folded_and_where(tiny_model):
    carriers = scaling().carriers(tiny_model, tiny_model.sites())
    block = "transformer_blocks.1"
    expected = {"attn1.to_k": "norm1.linear", "attn1.to_out.0": "attn1.to_v", "ff.net.0.proj": "norm1.linear"}
    assert all(carriers[f"{block}.{site}"] == f"{block}.{layer}" for site, layer in expected.items())
    assert carriers[f"{block}.ff.net.2"] is None
    assert carriers["proj_out_2"] == "proj_out_1"
    assert carriers.keys() == {s.name for s in tiny_model.sites()}
    text = transform_text(scaling(["ffn_up", "ffn_down"]).carriers(tiny_model, tiny_model.sites()))
    up, down, norm = (f"transformer_blocks.*.{name}" for name in ("ff.net.0.proj", "ff.net.2", "norm1.linear"))
    assert text == f"folded into {norm} for {up}; at run time for {down}"


def test_the_papers_inputs_of_dit_xl_are_balanced_and_all_fold():
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        denoiser = DiTTransformer2DModel(num_attention_heads=16, attention_head_dim=72, num_layers=28, patch_size=2)
    sites = list_sites(denoiser)
    model = SimpleNamespace(sites=lambda: sites, producers=lambda: list_producers(sites))
    transform = scaling(["qkv", "attn_out", "ffn_up"])
    assert len(transform.inputs(model, sites)) == 84
    assert None not in transform.carriers(model, sites).values()
