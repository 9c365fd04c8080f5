"""Every part of a fit works in the transformed basis; the original network is untouched."""

import pytest
import torch
from helpers.rewriting import BLOCKS, EVERYTHING, TRIAL, assert_same, calibration, output, points, recipe, scaling

from qdit.activation import DynamicActivation, StaticActivation
from qdit.calibration import NoCalibration
from qdit.errors import UserError
from qdit.method import quantize
from qdit.quant.ranges import MinMax
from qdit.rounding import GPTQ, Nearest
from qdit.runs.diagnose import Trajectory, layer_report
from qdit.search import ILP, Hessian
from qdit.search.base import Bench
from qdit.search.budget import MeanGroup
from qdit.search.variants import Variants
from qdit.transform import rewritten
from qdit.transform.statistics import Maximum
from qdit.weight import WeightGrid


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
    assert list(again.rewrite.origin.measured) == list(first.rewrite.origin.measured)  # the digest of a checkpoint
    with pytest.raises(UserError, match="is of another model or transform"):
        rewritten(scaling(["qkv"]), tiny_model, tiny_model.sites(), calibration, TRIAL, tmp_path)


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
