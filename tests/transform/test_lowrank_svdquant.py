"""Fits of networks with low-rank branches: rounded by every rule, counted, kept, saved; and the recipe (SVDQuant)."""

import itertools

import pytest
import torch
from helpers.configs import config as composed
from helpers.rewriting import (
    BLOCKS,
    assert_same,
    calibration,
    output,
    points,
    recipe,
    scaling,
)
from helpers.splitting import FULL, STATIC, chain, lowrank, spoiled, svdquant

from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.config import check
from qdit.errors import UserError
from qdit.execution import executing, has_int8
from qdit.ledger import ledger
from qdit.method import quantize
from qdit.policies import Policy
from qdit.rounding import GPTQ, AdaRound, Nearest
from qdit.runs.diagnose import Trajectory, layer_report
from qdit.runs.parts import build_recipe
from qdit.transform import ChannelScaling, LowRank, Trial, rewritten
from qdit.transform.statistics import Maximum


def weight_errors(model, parts):
    """The error of each site's weight, branch included, relative to the weight before rounding."""
    quantized = quantize(model, parts, calibration)
    found = {}
    for name, layer in quantized.layers.items():
        exact, branch = quantized.rewrite.layers[name], getattr(quantized.rewrite.layers[name], "branch", None)
        whole = exact.weight if branch is None else exact.weight + branch.up @ branch.down
        found[name] = float((layer.weight - exact.weight).norm() / whole.norm())
    return found


def test_full_rank_is_the_full_precision_weight_and_rank_none_is_the_scaled_one(tiny_model):
    """Specs of baselines, §11: r = min(O, C) ≡ FP weights; r = 0 ≡ smoothed RTN."""
    full = svdquant(FULL, 0, bits=(4, 16))
    assert max(weight_errors(tiny_model, full).values()) < 1e-6
    assert_same(output(tiny_model, quantize(tiny_model, full, calibration)), output(tiny_model))
    none, smooth = svdquant(0), svdquant(transform=scaling(BLOCKS, Maximum()))
    plain, scaled = (quantize(tiny_model, parts, calibration) for parts in (none, smooth))
    assert torch.equal(output(tiny_model, plain), output(tiny_model, scaled))
    assert none.transform.run_time(tiny_model, tiny_model.sites()) == smooth.transform.run_time(
        tiny_model, tiny_model.sites()
    )


def test_weights_lose_less_with_every_rank(tiny_model):
    model = spoiled(tiny_model)
    errors = [weight_errors(model, svdquant(rank, 0)) for rank in (0, 2, 8, 24)]
    for less, more in itertools.pairwise(errors):
        assert sum(more.values()) < 0.9 * sum(less.values())
        assert all(more[name] < 1.05 * less[name] for name in less)


@pytest.mark.parametrize(
    "rounding",
    [
        *(Nearest(), GPTQ(), GPTQ(order="sequential", act_order=True)),
        pytest.param(AdaRound(iterations=20, rate=0.05), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("activation", [None, STATIC], ids=["dynamic", "static"])
def test_every_rounding_rounds_the_rest_once_and_a_branch_helps_it(tiny_model, rounding, activation):
    model = spoiled(tiny_model)
    before = output(model)
    changes = {"rounding": rounding, **({} if activation is None else {"activation": activation})}
    errors = []
    for rank in (0, 4):
        quantized = quantize(model, svdquant(rank, bits=(3, 8), **changes), calibration)
        errors.append(float((output(model, quantized) - before).square().mean()))
        for name, layer in quantized.layers.items():
            exact = quantized.rewrite.layers[name]
            assert layer.rounded.spec.group_size == 16
            assert layer.branch is getattr(exact, "branch", None)
            assert (layer.rounded.weight - exact.weight).abs().max() < 2.5 * layer.rounded.grid.scale.max()
    assert errors[1] < 0.7 * errors[0]
    assert torch.equal(output(model), before)


def test_a_rounding_s_layers_have_the_branch_in_their_output(tiny_model):
    """Units reconstruct, and walks pass on, what the whole layer makes: at 8 bits, hardly an error."""
    model = spoiled(tiny_model)
    before = output(model)
    for rounding in (GPTQ(order="sequential"), AdaRound(iterations=4)):
        quantized = quantize(model, svdquant(8, 0, bits=(8, 8), rounding=rounding), calibration)
        assert (output(model, quantized) - before).square().mean() < 1e-3 * before.square().mean()


@pytest.mark.parametrize("make", [lowrank, lambda: chain("smooth", "lowrank", "hadamard")], ids=["alone", "chain"])
@pytest.mark.parametrize("rounding", [Nearest(), GPTQ()])
def test_a_checkpoint_gives_the_same_outputs_and_needs_no_data(tiny_model, tmp_path, make, rounding):
    quantized = quantize(tiny_model, recipe(transform=make(), rounding=rounding), calibration)
    expected = output(tiny_model, quantized)
    save(quantized, tmp_path, provenance(tiny_model))
    torch.manual_seed(987)
    loaded = load(tmp_path, tiny_model)
    assert torch.equal(output(tiny_model, loaded), expected)


def test_factors_are_kept_for_a_resumed_fit(tiny_model, tmp_path):
    parts = recipe(transform=chain("smooth", "lowrank"), rounding=GPTQ())
    first = quantize(tiny_model, parts, calibration, tmp_path)
    again = quantize(tiny_model, parts, lambda: pytest.fail("data was collected again"), tmp_path)
    assert torch.equal(output(tiny_model, first), output(tiny_model, again))
    with pytest.raises(UserError, match="is of another model or transform"):
        rewritten(lowrank(roles=["qkv"]), tiny_model, tiny_model.sites(), calibration, Trial(parts), tmp_path)


def test_adaround_resumes_behind_a_branch(tiny_model, tmp_path):
    parts = recipe(transform=lowrank(), rounding=AdaRound(iterations=3))
    first = quantize(tiny_model, parts, calibration, tmp_path)
    again = quantize(tiny_model, parts, lambda: pytest.fail("data was collected again"), tmp_path)
    assert torch.equal(output(tiny_model, first), output(tiny_model, again))


def test_the_ledger_counts_branches(tiny_model):
    parts, sites = svdquant(4), tiny_model.sites()
    policy = parts.plan(sites)
    chosen = [site for site in sites if site.name in policy]
    values = sum(4 * (site.in_features + site.out_features) for site in chosen)
    numel = sum(site.in_features * site.out_features for site in chosen)
    with_branch, without = (
        ledger(tiny_model.denoiser, sites, policy, tiny_model.attentions(), svdquant(rank).run_time(tiny_model))
        for rank in (4, 0)
    )
    assert with_branch.model_bytes - without.model_bytes == 2 * values
    assert with_branch.weight_bits_quantized - without.weight_bits_quantized == pytest.approx(16 * values / numel)
    assert with_branch.weight_bits_used == without.weight_bits_used == 4
    macs = sum(4 * site.tokens * (site.in_features + site.out_features) for site in chosen)
    assert with_branch.bops - without.bops == pytest.approx(macs * 16 * 16)
    assert with_branch.run_time_bytes - without.run_time_bytes == 2 * values
    assert ledger(tiny_model.denoiser, sites, Policy(), (), parts.run_time(tiny_model)).weight_bits_quantized is None


def test_layers_are_reported_with_their_branches(tiny_model):
    quantized = quantize(tiny_model, svdquant(8, bits=(8, 8)), calibration)
    unseen = points(1)
    path = Trajectory(unseen.x[None], [500], unseen.x[None], unseen.y)
    assert min(row["sqnr"] for row in layer_report(tiny_model, quantized, path)) > 25


def configured(*words):
    """The recipe of some overrides."""
    config = composed("quantizer=svdquant", *words)
    check(config)
    return build_recipe(config)


def test_the_recipe_is_the_paper_s_with_a_rank_for_narrow_layers():
    parts = configured("bits=w4a4")
    smooth, branch = parts.transform.steps.values()
    assert (type(smooth), type(branch)) == (ChannelScaling, LowRank)
    assert (branch.rank, branch.iterations) == (8, 100)
    for part in (parts.weight, parts.activation):
        assert (part.granularity, part.group_size, part.grid) == ("group", 64, "symmetric")
    assert configured("transform=lowrank", "transform.rank=16", "transform.iterations=0").transform.rank == 16


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_the_recipe_runs_from_end_to_end(tiny_model, tmp_path, rounding):
    words = ["bits=w4a4", f"rounding={rounding}", "weight.group_size=16", "activation.group_size=16"]
    parts = configured(*words, "transform.steps.lowrank.rank=4")
    quantized = quantize(tiny_model, parts, calibration)
    expected, original = output(tiny_model, quantized), output(tiny_model)
    plain = quantize(tiny_model, configured(*words, "transform.steps.lowrank.rank=0"), calibration)
    assert (expected - original).square().mean() < (output(tiny_model, plain) - original).square().mean()
    save(quantized, tmp_path, provenance(tiny_model))
    assert torch.equal(output(tiny_model, load(tmp_path, tiny_model)), expected)


@pytest.mark.skipif(not has_int8(torch.device("cpu")), reason="no int8 product here")
def test_integer_products_add_the_branch_too(tiny_model):
    quantized = quantize(tiny_model, svdquant(8, bits=(8, 8)), calibration)
    expected = output(tiny_model, quantized)
    with executing("int8", torch.device("cpu")):
        assert quantized.executed == "int8"
        found = output(tiny_model, quantized)
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
