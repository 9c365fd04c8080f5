"""RepQ-ViT's reparameterization: exact, and one grid then gives the codes of a grid a channel."""

from dataclasses import replace

import pytest
import torch
from helpers.rewriting import TRIAL, assert_same, calibration, output, points, recipe, unable_to_fold
from torch import nn

import qdit.transform.reparam as reparam_module
from qdit.activation import StaticActivation
from qdit.calibration.observers import input_values
from qdit.method import quantize
from qdit.quant.affine import affine
from qdit.quant.ranges import MSE, MinMax, PercentileMSE
from qdit.quant.spec import QuantSpec
from qdit.transform import Chain, Hadamard, Reparameterization, rewritten
from qdit.transform.reparam import aligned

ROLES = ["qkv", "ffn_up"]


def reparam(roles=ROLES, rule=None):
    return Reparameterization(name="reparam", roles=roles, range=rule or MinMax(), bits=8)


def channels(n=4000, width=16):
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-1, 1, width, dtype=torch.float64)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64) * spread
    return x + torch.randn(width, generator=generator, dtype=torch.float64)


def test_golden_the_product_is_the_same():
    x, weight, bias = channels(), torch.randn(8, 16).double(), torch.randn(8).double()
    r, d = aligned(x.amin(0), x.amax(0))
    rewritten_product = ((x + d) / r) @ (weight * r).T + (bias - weight @ d)
    assert (rewritten_product - (x @ weight.T + bias)).abs().max() < 1e-10


def test_golden_one_grid_gives_the_codes_of_a_grid_a_channel():
    """Ranges are chosen such that zero points, and their mean, are whole numbers (r₂ integral)."""
    spec = QuantSpec(bits=8, granularity="row", grid="asymmetric", dynamic=False)
    scale = torch.logspace(-2, 0, 16, dtype=torch.float64).view(-1, 1)
    zero = (torch.arange(16).double() * 4 + 66).view(-1, 1)  # mean 96
    lo, hi = -zero * scale, (255 - zero) * scale
    x = lo + (hi - lo) * torch.rand(16, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = affine(lo, hi, spec).encode(x)
    r, d = aligned(lo[:, 0], hi[:, 0])
    moved = (x + d.view(-1, 1)) / r.view(-1, 1)
    mean = scale.mean()
    one = affine(*(torch.full((1, 1), end, dtype=torch.float64) for end in (-96 * mean, (255 - 96) * mean)), spec)
    assert one.zero_point.item() == 96
    assert (one.encode(moved.reshape(1, -1)).view_as(own) - own).abs().max() <= 1  # rounding of ties
    assert (one.encode(moved.reshape(1, -1)).view_as(own) == own).float().mean() > 0.999


def test_constant_channels_become_zero_and_far_ones_keep_zero_in_the_range():
    lo, hi = torch.tensor([5.0, -1.0, 0.0]), torch.tensor([5.0, 3.0, 2.0])
    r, d = aligned(lo, hi)
    assert ((lo + d) / r)[0] == 0
    torch.testing.assert_close(((lo + d) / r)[1:], ((lo + d) / r)[1].expand(2))
    r, d = aligned(lo[:1].repeat(2), hi[:1].repeat(2))
    assert r.tolist() == [1, 1]
    r, d = aligned(torch.tensor([7.0, 9.0]), torch.tensor([8.0, 11.0]))
    assert ((torch.tensor([7.0, 9.0]) + d) / r).tolist() == [0, 0]


@pytest.mark.parametrize("rule", [MinMax(), PercentileMSE()], ids=lambda r: type(r).__name__)
def test_folded_and_unfolded_and_original_networks_are_equal(rule, tiny_model, monkeypatch):
    original, sites = output(tiny_model), tiny_model.sites()
    folded = rewritten(reparam([*ROLES, "attn_out"], rule), tiny_model, sites, calibration, TRIAL, None)
    assert_same(output(tiny_model, folded), original)
    assert folded.inputs == {}
    assert all(type(layer) is nn.Linear for layer in folded.layers.values())
    everywhere = [*ROLES, "attn_out", "ffn_down", "final"]
    unfolded = rewritten(
        reparam(everywhere, rule), unable_to_fold(tiny_model, monkeypatch), sites, calibration, TRIAL, None
    )
    assert_same(output(tiny_model, unfolded), original)
    assert unfolded.inputs


def test_each_channel_of_a_wide_input_has_values_enough(tiny_model, monkeypatch):
    """Of few values the two extremes weigh too much in the mean error, and ranges become too wide."""
    sites, rule = tiny_model.sites(), MSE(candidates=50)

    def ranges(values, of_a_channel):
        monkeypatch.setattr(reparam_module, "VALUES", values)
        monkeypatch.setattr(reparam_module, "CHANNEL_VALUES", of_a_channel)
        return replace(reparam(rule=rule), bits=3).measure(tiny_model, sites, calibration, TRIAL)

    of_all = ranges(1, 2**20)
    few, enough = ranges(2**8, 1), ranges(2**8, 2**20)
    assert all(torch.equal(enough[name], ends) for name, ends in of_all.items())
    assert any(not torch.equal(few[name], ends) for name, ends in of_all.items())


def test_all_channels_have_one_range_afterwards(tiny_model):
    rewrite = rewritten(reparam(), tiny_model, tiny_model.sites(), calibration, TRIAL, None)
    ends = {}
    with rewrite.installed(tiny_model):
        layer = tiny_model.denoiser.get_submodule("transformer_blocks.1.ff.net.0.proj")
        rows = []
        handle = layer.register_forward_hook(lambda m, args, out: rows.append(args[0].flatten(0, 1)))
        for x, t, y in calibration().batches(tiny_model):
            with torch.no_grad():
                tiny_model.denoise(x, t, y)
        handle.remove()
        ends = torch.cat(rows).aminmax(dim=0)
    for end in ends:
        torch.testing.assert_close(end, end.mean().expand_as(end), atol=1e-3, rtol=1e-3)


def test_what_the_collection_of_data_computes_is_not_watched(tiny_model):
    def collect():
        other = points(5)
        with torch.no_grad():
            tiny_model.denoise(3 * other.x, other.t, other.y)
        return calibration()

    sites = tiny_model.sites()
    expected = reparam().measure(tiny_model, sites, calibration, TRIAL)
    for name, ends in reparam().measure(tiny_model, sites, collect, TRIAL).items():
        assert torch.equal(ends, expected[name])


def test_a_static_grid_a_tensor_is_better_behind_it(tiny_model):
    with torch.no_grad():  # channels of unlike size
        for block in tiny_model.denoiser.transformer_blocks:
            rows = torch.logspace(-1, 1, 32)
            block.norm1.linear.bias[32:64] += rows
            block.norm1.linear.bias[128:160] += rows
    static = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())

    def error(transform):
        parts = recipe((16, 6), ["qkv", "ffn_up"], activation=static, transform=transform)
        return (output(tiny_model, quantize(tiny_model, parts, calibration)) - output(tiny_model)).square().mean()

    assert error(reparam()) < 0.7 * error(None)


def test_it_chains_with_a_rotation(tiny_model):
    rotation = Hadamard(name="hadamard", roles=ROLES, block=None, seed=0)
    chain = Chain(name="both", steps={"reparam": reparam(), "hadamard": rotation})
    rewrite = rewritten(chain, tiny_model, tiny_model.sites(), calibration, TRIAL, None)
    assert_same(output(tiny_model, rewrite), output(tiny_model))


def test_what_is_measured_is_kept_and_read_again(tiny_model, tmp_path):
    first = rewritten(reparam(), tiny_model, tiny_model.sites(), calibration, TRIAL, tmp_path)
    again = rewritten(reparam(), tiny_model, tiny_model.sites(), lambda: pytest.fail("measured again"), TRIAL, tmp_path)
    for name, layer in first.layers.items():
        assert torch.equal(layer.weight, again.layers[name].weight)
    site = next(s for s in tiny_model.sites() if s.role == "ffn_up")
    with again.installed(tiny_model):
        assert input_values(tiny_model, [site], points(1))[site.name]
