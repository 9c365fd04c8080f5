"""Scaled networks on the tiny DiT: exact, folded or not, and what is folded where."""

from types import SimpleNamespace

import pytest
import torch
from helpers.rewriting import (
    STATISTICS,
    TRIAL,
    assert_same,
    calibration,
    output,
    scaling,
    unable_to_fold,
    wild_factors,
)
from torch import nn

from qdit.model.base import Fold, Source
from qdit.model.dit import list_attentions, list_folds, list_sites
from qdit.runs.plan import transform_text
from qdit.transform import rewritten


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: type(s).__name__)
def test_folded_and_unfolded_and_original_networks_are_equal(tiny_model, monkeypatch, statistic):
    transform, sites, original = scaling(statistic=statistic), tiny_model.sites(), output(tiny_model)
    folded = rewritten(transform, tiny_model, sites, calibration, TRIAL, None)
    assert_same(output(tiny_model, folded), original)
    unfolded = rewritten(transform, unable_to_fold(tiny_model, monkeypatch), sites, calibration, TRIAL, None)
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
    wrong = [
        Fold(tuple(Source(source.layer, source.linear + source.one_plus) for source in fold.sources), fold.readers)
        for fold in tiny_model.folds()
    ]
    monkeypatch.setattr(tiny_model, "folds", lambda: wrong)
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
    rewrite = rewritten(scaling(), tiny_model, tiny_model.sites(), calibration, TRIAL, None)
    assert_same(output(tiny_model, rewrite), output(tiny_model))
    with torch.no_grad():
        tiny_model.denoiser.transformer_blocks[0].ff.net[0].proj.weight.zero_()
    rewrite = rewritten(scaling(), tiny_model, tiny_model.sites(), calibration, TRIAL, None)
    assert_same(output(tiny_model, rewrite), output(tiny_model))


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
    folds = list_folds(sites, list_attentions(denoiser))
    model = SimpleNamespace(sites=lambda: sites, folds=lambda: folds)
    transform = scaling(["qkv", "attn_out", "ffn_up"])
    assert len(transform.inputs(model, sites)) == 84
    assert None not in transform.carriers(model, sites).values()
