"""Rotated networks on the tiny DiT: exact, folded into values head by head, alone and behind a scaling."""

from dataclasses import replace

import pytest
import torch
from helpers.rewriting import (
    BLOCKS,
    EVERYTHING,
    TRIAL,
    assert_same,
    calibration,
    output,
    recipe,
    scaling,
    unable_to_fold,
    wild_factors,
)

from qdit.calibration import NoCalibration
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.errors import UserError
from qdit.method import quantize
from qdit.nn.basis import Rotation
from qdit.nn.linear import QuantLinear
from qdit.quant.grid import fake_quantize
from qdit.quant.hadamard import base_matrix, sylvester
from qdit.quant.spec import QuantSpec
from qdit.rounding import GPTQ, Nearest
from qdit.runs.plan import transform_text
from qdit.transform import Chain, Hadamard, rewritten
from qdit.transform.rotation import random_signs
from qdit.transform.statistics import Maximum

BLOCK = "transformer_blocks.1"


def rotation(roles=BLOCKS, block=None, seed=0):
    return Hadamard(name="hadamard", roles=roles, block=block, seed=seed)


def both(roles=BLOCKS, **changes):
    return Chain(name="both", steps={"smooth": scaling(roles, Maximum()), "hadamard": rotation(roles, **changes)})


@pytest.mark.parametrize("make", [rotation, both], ids=["rotation", "both"])
@pytest.mark.parametrize(("roles", "block"), [(BLOCKS, None), (BLOCKS, 8), (EVERYTHING, None)])
def test_folded_and_unfolded_and_original_networks_are_equal(tiny_model, monkeypatch, make, roles, block):
    transform, sites, original = make(roles, block=block), tiny_model.sites(), output(tiny_model)
    folded = rewritten(transform, tiny_model, sites, calibration, TRIAL, None)
    assert_same(output(tiny_model, folded), original)
    unfolded = rewritten(transform, unable_to_fold(tiny_model, monkeypatch), sites, calibration, TRIAL, None)
    assert_same(output(tiny_model, unfolded), original)
    wanted = {s.name for s in sites if s.role in roles}
    assert unfolded.inputs.keys() == wanted
    assert folded.inputs.keys() == wanted - {f"transformer_blocks.{i}.attn1.to_out.0" for i in range(2)}


def test_the_rotation_is_the_dense_one(tiny_model):
    rewrite = rotation(["ffn_down"]).rewrite(tiny_model, tiny_model.sites(), {})
    name = f"{BLOCK}.ff.net.2"
    dense = random_signs(0, name, 128).float()[:, None] * sylvester(128).float() / 128**0.5
    original = tiny_model.denoiser.get_submodule(name).weight
    torch.testing.assert_close(rewrite.layers[name].weight, original @ dense, atol=1e-5, rtol=0)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rewrite.inputs[name](x), x @ dense, atol=1e-5, rtol=0)


def test_values_take_the_rotation_of_their_heads(tiny_model):
    rewrite = rotation(["attn_out"]).rewrite(tiny_model, tiny_model.sites(), {})
    assert rewrite.inputs == {}
    assert set(rewrite.layers) == {f"transformer_blocks.{i}.attn1.{n}" for i in range(2) for n in ("to_v", "to_out.0")}
    head = sylvester(16) / 4
    signs = random_signs(0, f"{BLOCK}.attn1.to_out.0", 32).double()
    dense = (signs[:, None] * torch.block_diag(head, head)).float()
    values = tiny_model.denoiser.get_submodule(f"{BLOCK}.attn1.to_v")
    found = rewrite.layers[f"{BLOCK}.attn1.to_v"]
    torch.testing.assert_close(found.weight, dense.T @ values.weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.bias, values.bias @ dense, atol=1e-5, rtol=0)


def test_a_head_without_a_hadamard_matrix_is_rotated_at_run_time(tiny_model, monkeypatch):
    odd = [replace(fold, mixing=1 if fold.mixing == 1 else 26) for fold in tiny_model.folds()]
    monkeypatch.setattr(tiny_model, "folds", lambda: odd)
    transform = rotation(["attn_out"])
    assert set(transform.carriers(tiny_model, tiny_model.sites()).values()) == {None}
    assert len(transform.run_time(tiny_model, tiny_model.sites())) == 2


def test_a_chain_scales_first_and_folds_both_where_it_can(tiny_model):
    transform, sites = both(["attn_out", "ffn_up", "ffn_down"]), tiny_model.sites()
    scale, turn = transform.steps["smooth"], transform.steps["hadamard"]
    factors = wild_factors(scale, tiny_model)
    measured = {f"smooth/{name}": r for name, r in factors.items()}
    rewrite = transform.rewrite(tiny_model, sites, measured)
    assert_same(output(tiny_model, rewrite), output(tiny_model))
    up, down = f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff.net.2"
    assert type(rewrite.inputs[up]) is Rotation  # adaLN takes the factor
    assert [type(step).__name__ for step in rewrite.inputs[down]] == ["Scale", "Rotation"]
    expected = rewrite.inputs[up](tiny_model.denoiser.get_submodule(up).weight * factors[up])
    torch.testing.assert_close(rewrite.layers[up].weight, expected)
    text = [transform_text(step.carriers(tiny_model, sites)) for step in (scale, turn)]
    assert text[0].endswith("at run time for transformer_blocks.*.ff.net.2")
    assert text[1].startswith("folded into transformer_blocks.*.attn1.to_v for transformer_blocks.*.attn1.to_out.0")
    left = {(each.site.name, each.storage_bits) for each in transform.run_time(tiny_model, sites)}
    assert left >= {(up, 32), (down, 16 * 128), (down, 128)}


def test_a_later_step_measures_behind_the_earlier_ones(tiny_model):
    """After a rotation, SmoothQuant's factors are those of the rotated inputs and weights."""
    turn, scale = rotation(["ffn_down"]), scaling(["ffn_down"], Maximum())
    chain = Chain(name="chain", steps={"hadamard": turn, "smooth": scale})
    sites, original, name = tiny_model.sites(), output(tiny_model), f"{BLOCK}.ff.net.2"
    measured = chain.measure(tiny_model, sites, calibration, TRIAL)
    assert_same(output(tiny_model, chain.rewrite(tiny_model, sites, measured)), original)
    seen = []
    layer = tiny_model.denoiser.get_submodule(name)
    handle = layer.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    for batch in calibration().batches(tiny_model):
        with torch.no_grad():
            tiny_model.denoise(*batch)
    handle.remove()
    turned = turn.rewrite(tiny_model, sites, {})
    x = turned.inputs[name](torch.cat([s.flatten(0, -2) for s in seen]))
    expected = (x.abs().amax(0) / turned.layers[name].weight.abs().amax(0)).sqrt()
    torch.testing.assert_close(measured[f"smooth/{name}"], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("rounding", [Nearest(), GPTQ()])
def test_a_weight_is_rounded_once_and_in_the_rotated_basis(tiny_model, rounding):
    quantized = quantize(tiny_model, recipe(transform=both(), rounding=rounding), calibration)
    for name, layer in quantized.layers.items():
        exact = quantized.rewrite.layers[name].weight
        assert layer.weight.isfinite().all()
        for row, full in zip(layer.weight, exact, strict=True):
            assert len(row.unique()) <= 16
            if isinstance(rounding, Nearest):
                assert (row - full).abs().max() <= (full.amax().clamp(min=0) - full.amin().clamp(max=0)) / 15 / 2 + 1e-6


def outlier_layer(seed=0, n=1152):
    """An input with static outlier channels, and a weight."""
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(64, n, generator=generator), torch.randn(96, n, generator=generator) / n**0.5
    x[:, ::97] *= 60
    return x, w


def test_outliers_are_lowered_and_the_product_is_closer():
    x, w = outlier_layer()
    turn, r = Rotation(random_signs(0, "a", 1152), None), (x.abs().amax(0) / w.abs().amax(0)).sqrt()
    token, row = QuantSpec(bits=8, grid="symmetric"), QuantSpec(bits=4)

    def sqnr(x_, w_):
        noise = fake_quantize(x_, token) @ fake_quantize(w_, row).T - x @ w.T
        return 10 * ((x @ w.T).square().sum() / noise.square().sum()).log10()

    def incoherence(x):
        return (x.abs().amax(1) / x.square().mean(1).sqrt()).mean()

    raw, rotated, scaled = (x, w), (turn(x), turn(w)), (turn(x / r), turn(w * r))
    assert incoherence(rotated[0]) < incoherence(raw[0]) / 1.8
    assert incoherence(scaled[0]) < incoherence(raw[0]) / 1.8
    assert sqnr(*scaled) > sqnr(*raw) + 1
    assert sqnr(*rotated) > sqnr(*raw)


def test_signs_belong_to_what_runs_and_not_to_a_random_stream(tiny_model):
    first = rotation().rewrite(tiny_model, tiny_model.sites(), {})
    torch.manual_seed(123)
    again = rotation().rewrite(tiny_model, tiny_model.sites(), {})
    assert all(torch.equal(m.signs, again.inputs[n].signs) for n, m in first.inputs.items())
    other = rotation(seed=1).rewrite(tiny_model, tiny_model.sites(), {})
    assert all(not torch.equal(m.signs, other.inputs[n].signs) for n, m in first.inputs.items())
    name = f"{BLOCK}.ff.net.2"
    assert isinstance(first.layers[name], QuantLinear)
    stored = first.inputs[name].state_dict()
    fresh = Rotation(torch.ones(128, dtype=torch.int8), None)
    fresh.load_state_dict(stored)
    x = torch.randn(2, 128)
    assert torch.equal(fresh(x), first.inputs[name](x))


def test_tokens_do_not_see_one_another(tiny_model):
    quantized = quantize(tiny_model, recipe(transform=both()), calibration)
    layer = quantized.layers[f"{BLOCK}.ff.net.2"]
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[1] *= 100
    assert torch.equal(layer.quantizer(x)[[0, 2, 3]], layer.quantizer(changed)[[0, 2, 3]])
    assert torch.equal(layer.quantizer(x[[2, 0, 1, 3]]), layer.quantizer(x)[[2, 0, 1, 3]])


def test_only_a_chain_with_a_scaling_needs_data(tiny_model):
    assert recipe(transform=rotation(), calibration=NoCalibration()).problems(tiny_model.sites()) == []
    (problem,) = recipe(transform=both(), calibration=NoCalibration()).problems(tiny_model.sites())
    assert problem.startswith("transform needs data")


def test_what_cannot_be_rotated_is_named(tiny_model):
    sites = tiny_model.sites()
    assert rotation(["ffn_up"], block=12).problems(sites) == [
        "transform.block=12 does not divide the 32 inputs of transformer_blocks.1.ff.net.0.proj; 32 does"
    ]
    (problem,) = rotation(["ffn_up"], block=26).problems(sites)
    assert problem.startswith(
        "transform.block=26: no Hadamard matrix is known here for 26 channels; blocks of 2 divide"
    )
    (problem,) = both(["ffn_up"], block=12).problems(sites)
    assert problem.startswith("transform.steps.hadamard.block=12")
    assert rotation(["nobody"]).problems(sites)[0].startswith("transform.roles has 'nobody'")
    with pytest.raises(UserError, match="transform.steps is empty"):
        Chain(name="chain", steps={})


def test_measurements_of_a_chain_are_kept_for_a_resumed_fit(tiny_model, tmp_path):
    parts = recipe(transform=both(), rounding=GPTQ())
    first = quantize(tiny_model, parts, calibration, tmp_path)
    again = quantize(tiny_model, parts, lambda: pytest.fail("data was collected again"), tmp_path)
    assert all(torch.equal(again.layers[n].weight, layer.weight) for n, layer in first.layers.items())
    with pytest.raises(UserError, match="is of another model or transform"):
        rewritten(both(["qkv"]), tiny_model, tiny_model.sites(), calibration, TRIAL, tmp_path)


def test_a_width_of_dit_xl_has_its_matrix():
    assert base_matrix(36).shape == (36, 36)
    made = Rotation(random_signs(0, "qkv", 1152), None)
    eye = made(torch.eye(1152, dtype=torch.float64))
    assert (eye @ eye.T - torch.eye(1152, dtype=torch.float64)).abs().max() < 1e-10


def test_a_checkpoint_gives_the_same_outputs_whatever_the_random_stream(tiny_model, tmp_path):
    """Golden test 11 of ViDiT-Q: its release draws R anew from the global seed when it loads."""
    quantized = quantize(tiny_model, recipe(transform=both()), calibration)
    expected = output(tiny_model, quantized)
    save(quantized, tmp_path, provenance(tiny_model))
    torch.manual_seed(987)
    loaded = load(tmp_path, tiny_model)
    assert torch.equal(output(tiny_model, loaded), expected)


def test_data_that_only_a_later_part_needs_are_of_the_original_network(tiny_model):
    original, seen = tiny_model.denoiser.get_submodule(f"{BLOCK}.ff.net.2"), []

    def collect():
        seen.append(tiny_model.denoiser.get_submodule(f"{BLOCK}.ff.net.2"))
        return calibration()

    quantize(tiny_model, recipe(transform=rotation(), rounding=GPTQ()), collect)
    assert seen == [original]
    assert tiny_model.denoiser.get_submodule(f"{BLOCK}.ff.net.2") is original
