"""Recipes of quantizers of vision transformers and of earlier diffusion models: what their policies have of papers."""

import pytest
import torch
import torch.nn.functional as F
from helpers.configs import config

from qdit.runs.parts import build_recipe


def completed(model, *words):
    recipe = build_recipe(config(*words))
    assert recipe is not None
    assert recipe.problems(model.sites()) == []
    return recipe, recipe.completed(recipe.plan(model.sites()), model)


def grids(model, policy):
    """The grids of inputs by role."""
    return {s.role: policy[s.name].activation.grid for s in model.sites() if s.name in policy}


def test_fq_vit_has_exponents_behind_layer_norms_and_4_bit_powers(tiny_model):
    _, policy = completed(tiny_model, "quantizer=fq_vit", "bits=w8a8")
    found = grids(tiny_model, policy)
    assert {role for role, grid in found.items() if grid == "channel_shift"} == {"qkv", "ffn_up"}
    assert {layer.weight.grid for layer in policy.values() if layer.weight} == {"symmetric_full"}
    probs = policy["transformer_blocks.0.attn1.probs"].activation
    assert (probs.bits, probs.grid) == (4, "log2")


def test_qvd_has_two_sides_at_time_features_down_to_the_minimum_of_silu(tiny_model):
    recipe, policy = completed(tiny_model, "quantizer=qvd", "bits=w8a8")
    found = grids(tiny_model, policy)
    assert {role for role, grid in found.items() if grid == "two_sided"} == {"adaln"}
    x = torch.linspace(-2, 0, 200_001, dtype=torch.float64)
    values = F.silu(x)
    assert -values.min().item() == pytest.approx(recipe.activation.regions.negative, abs=1e-7)
    assert x[values.argmin()].item() == pytest.approx(-1.2784645, abs=1e-4)


@pytest.mark.parametrize(("name", "drop", "inner"), [("qdrop", 0.5, 0.0), ("eda_dm", 0.0, 0.8)])
def test_reconstructions_have_their_papers_keys(tiny_model, name, drop, inner):
    recipe, _ = completed(tiny_model, f"quantizer={name}", "bits=w4a8")
    assert (recipe.rounding.drop, recipe.rounding.inner) == (drop, inner)


def test_tfmq_dm_learns_what_depends_on_time_first_and_has_ranges_for_each_step(tiny_model):
    recipe, policy = completed(tiny_model, "quantizer=tfmq_dm", "bits=w4a8", "sampler.steps=10")
    assert recipe.rounding.units == "temporal"
    assert {layer.activation.time_groups for layer in policy.values()} == {10}


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
@pytest.mark.parametrize("name", ["tfmq_dm", "ptq_vit", "apq_vit", "passion_sr"])
def test_later_recipes_go_with_usual_bits(tiny_model, name, bits):
    recipe, policy = completed(tiny_model, f"quantizer={name}", f"bits={bits}")
    assert {layer.weight.bits for layer in policy.values() if layer.weight} == {recipe.weight_bits}


def test_apq_vit_weighs_blocks_and_leaves_out_the_smaller_half(tiny_model):
    recipe, policy = completed(tiny_model, "quantizer=apq_vit", "bits=w4a4")
    assert recipe.weight.range == recipe.activation.range
    assert (recipe.weight.range.unit, recipe.weight.range.eliminate) == ("block", 0.5)
    assert policy["transformer_blocks.0.attn1.probs"].activation.grid == "unsigned"


def test_ditas_searches_its_exponent_and_keeps_a_branch(tiny_model):
    recipe, policy = completed(tiny_model, "quantizer=ditas", "bits=w4a8")
    assert list(recipe.transform.steps) == ["smooth", "lowrank"]
    assert recipe.transform.steps["smooth"].alpha.steps == 20
    assert all(layer.activation.dynamic for layer in policy.values())
