"""Channel shifts behind GELUs (TaQ-DiT): exact, centred, and of the batches in their order."""

from dataclasses import replace

import pytest
import torch
from helpers.rewriting import TRIAL, assert_same, calibration, output, points, recipe, unable_to_fold

from qdit.activation import StaticActivation
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.errors import UserError
from qdit.method import quantize
from qdit.quant.ranges import MinMax
from qdit.transform import Centred, Chain, Hadamard, rewritten
from qdit.transform.shift import middles

DOWN = "transformer_blocks.1.ff.net.2"


def shift(*roles, momentum=0.95):
    return Centred(name="shift", roles=list(roles) or ["ffn_down"], momentum=momentum)


def test_the_middle_moves_from_batch_to_batch():
    batches = torch.randn(3, 20, 5, generator=torch.Generator().manual_seed(0))
    v = None
    for rows in batches:
        v = middles(v, rows, 0.9)
    middle = (batches.amin(1) + batches.amax(1)) / 2
    torch.testing.assert_close(v, 0.81 * middle[0] + 0.09 * middle[1] + 0.1 * middle[2])


def test_the_network_stays_the_same_folded_or_not(tiny_model, monkeypatch):
    original, sites = output(tiny_model), tiny_model.sites()
    own = rewritten(shift(), tiny_model, sites, calibration, TRIAL, None)
    assert_same(output(tiny_model, own), original)
    assert set(own.inputs) == {site.name for site in sites if site.role == "ffn_down"}
    everywhere = shift("qkv", "attn_out", "ffn_up", "ffn_down")
    folded = rewritten(everywhere, tiny_model, sites, calibration, TRIAL, None)
    assert_same(output(tiny_model, folded), original)
    assert len(folded.inputs) == len(own.inputs)
    unfolded = rewritten(everywhere, unable_to_fold(tiny_model, monkeypatch), sites, calibration, TRIAL, None)
    assert_same(output(tiny_model, unfolded), original)


def test_the_last_batchs_channels_are_centred_without_momentum(tiny_model):
    data = replace(points(0), batch_size=6)
    own = rewritten(shift(momentum=0.0), tiny_model, tiny_model.sites(), lambda: data, TRIAL, None)
    seen = []
    with own.installed(tiny_model), torch.no_grad():
        layer = tiny_model.denoiser.get_submodule(DOWN)
        handle = layer.register_forward_pre_hook(lambda module, args: seen.append(module.quantizer(args[0])))
        tiny_model.denoise(data.x, data.t, data.y)
        handle.remove()
    lo, hi = seen[0].flatten(0, -2).aminmax(dim=0)
    torch.testing.assert_close(lo, -hi, atol=1e-5, rtol=1e-4)


def test_a_shift_of_zero_is_the_recipe_without_it_bit_for_bit(tiny_model):
    static = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())
    plain = quantize(tiny_model, recipe(activation=static, transform=None), calibration)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qdit.transform.shift.middles", lambda before, rows, momentum: torch.zeros(rows.shape[1]))
        none = quantize(tiny_model, recipe(activation=static, transform=shift()), calibration)
    assert torch.equal(output(tiny_model, none), output(tiny_model, plain))


def test_rounded_inputs_behind_a_gelu_lose_less_and_are_saved(tiny_model, tmp_path):
    """Where channels lie at different heights, as behind the GELU of a trained network."""
    up = tiny_model.denoiser.get_submodule(DOWN.replace("net.2", "net.0.proj"))
    with torch.no_grad():
        up.bias.add_(torch.linspace(0, 20, len(up.bias)))
    static = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())
    full, errors = output(tiny_model), []
    for transform in (None, shift()):
        how = recipe((16, 4), ["ffn_down"], activation=static, transform=transform)
        made = quantize(tiny_model, how, calibration)
        errors.append((output(tiny_model, made) - full).square().mean())
    assert errors[1] < errors[0]
    save(made, tmp_path, provenance(tiny_model))
    assert torch.equal(output(tiny_model, load(tmp_path, tiny_model)), output(tiny_model, made))


def test_it_is_one_of_several_steps_and_counts_in_the_ledger(tiny_model):
    rotation = Hadamard(name="hadamard", roles=["ffn_down"], block=None, seed=0)
    chain = Chain(name="both", steps={"shift": shift(), "hadamard": rotation})
    both = rewritten(chain, tiny_model, tiny_model.sites(), calibration, TRIAL, None)
    assert_same(output(tiny_model, both), output(tiny_model))
    left = shift().run_time(tiny_model, tiny_model.sites())
    assert {(each.site.role, each.storage_bits) for each in left} == {("ffn_down", 16 * left[0].site.in_features)}
    with pytest.raises(UserError, match="momentum"):
        shift(momentum=1.0)
