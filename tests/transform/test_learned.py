"""Learned scales and shifts: the golden start, exactness, gradients through ranges, and what learning is good for."""

import pytest
import torch
from helpers.rewriting import BLOCKS, assert_same, calibration, output, points, recipe
from torch import nn

from qdit.activation import DynamicActivation, StaticActivation
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.errors import UserError
from qdit.method import quantize
from qdit.quant.grid import fake_quantize
from qdit.quant.ranges import MinMax
from qdit.quant.spec import QuantSpec
from qdit.transform import Chain, Hadamard, Learned, Trial, rewritten
from qdit.transform.learned import starting_scales
from qdit.transform.mapped import Channels, Mapped, rounded_straight

FULL = QuantSpec(bits=16)


def learned(roles=BLOCKS, **changes):
    return Learned(**{"name": "learned", "roles": roles, "iterations": 6, "batch_size": 4} | changes)


def test_golden_start():
    found = starting_scales(torch.tensor([8.0, 1]), torch.tensor([0.5, 2]), 0.3)
    assert found.tolist() == pytest.approx([2.297397, 0.812252], abs=1e-6)
    assert starting_scales(torch.tensor([8.0, 0]), torch.tensor([0.5, 2]), 0.3).tolist() == pytest.approx([2.297397, 1])


def test_it_leaves_the_product_as_it_is():
    random = torch.Generator().manual_seed(0)
    x, layer = torch.randn(50, 8, generator=random).double(), nn.Linear(8, 5).double()
    channels = Channels(torch.rand(8, generator=random).double() + 0.2, torch.rand(8, generator=random).double())
    with torch.no_grad():
        channels.moved += torch.randn(8, generator=random)
        assert (Mapped(layer, channels, FULL, FULL)(x) - layer(x)).abs().max() < 1e-12


@pytest.mark.parametrize(
    "spec", [QuantSpec(bits=4), QuantSpec(bits=3, granularity="group", group_size=4, grid="symmetric")]
)
def test_rounding_is_the_recipes_and_gradients_see_the_steps(spec):
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    made = rounded_straight(x, spec)
    torch.testing.assert_close(made.float(), fake_quantize(x.detach().float(), spec))
    factor = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).double()
    (gradient,) = torch.autograd.grad((made * factor).sum(), x)
    scaled = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)  # codes stay, so a gain is seen as one
    (gain,) = torch.autograd.grad((rounded_straight(scaled * x.detach(), spec) * factor).sum(), scaled)
    assert gain.item() == pytest.approx((made.detach() * factor).sum().item(), rel=1e-6)
    assert not torch.equal(gradient, factor)


def test_the_rewritten_network_is_the_same_and_no_iteration_is_the_start(tiny_model):
    original, sites, trial = output(tiny_model), tiny_model.sites(), Trial(recipe((3, 4)))
    start = learned(iterations=0).measure(tiny_model, sites, calibration, trial)
    assert all((shift == 0).all() for _, shift in start.values())
    made = learned(rate=0.05)
    with torch.no_grad():
        measured = made.measure(tiny_model, sites, calibration, trial)
    assert any((shift != 0).any() for _, shift in measured.values())
    assert_same(output(tiny_model, made.rewrite(tiny_model, sites, measured)), original)
    assert all(p.grad is None for p in tiny_model.denoiser.parameters())


STATIC = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())


def test_blocks_are_nearer_to_full_precision_than_at_the_start(tiny_model):
    for block in tiny_model.denoiser.transformer_blocks:  # channels that differ, and are off the middle
        with torch.no_grad():
            block.norm1.linear.bias[:32].add_(torch.linspace(-4, 4, 32))
            block.norm1.linear.bias[96:128].add_(torch.linspace(4, -4, 32))
    errors = []
    for iterations in (0, 40):
        made = learned(iterations=iterations, rate=0.05, roles=["qkv", "ffn_up"])
        fitted = quantize(tiny_model, recipe((8, 4), activation=STATIC, transform=made), calibration)
        errors.append((output(tiny_model, fitted) - output(tiny_model)).square().mean().item())
    assert errors[1] < 0.8 * errors[0]


def test_a_block_that_ends_worse_keeps_its_start(tiny_model):
    trial, sites = Trial(recipe((4, 4))), tiny_model.sites()
    start, wild = (
        learned(iterations=n, rate=r).measure(tiny_model, sites, calibration, trial) for n, r in ((0, 1.0), (3, 30.0))
    )
    assert all(torch.equal(value, wild[name]) for name, value in start.items())


def test_what_was_learned_is_read_back_and_saved_and_a_chain_may_follow(tiny_model, tmp_path, monkeypatch):
    steps = {
        "learned": learned(roles=["qkv", "ffn_up"]),
        "hadamard": Hadamard(name="h", roles=["ffn_up"], block=None, seed=0),
    }
    parts = recipe(transform=Chain(name="both", steps=steps))
    made = quantize(tiny_model, parts, calibration, tmp_path / "fit")
    monkeypatch.setattr(Learned, "learn", None)
    again = quantize(tiny_model, parts, calibration, tmp_path / "fit")
    assert torch.equal(output(tiny_model, again), output(tiny_model, made))
    save(made, tmp_path / "saved", provenance(tiny_model))
    assert torch.equal(output(tiny_model, load(tmp_path / "saved", tiny_model)), output(tiny_model, made))


def test_what_cannot_be_learned_through_is_refused(tiny_model):
    floats = DynamicActivation(granularity="row", grid="e4m3")
    with pytest.raises(UserError, match="grid='e4m3' has others"):
        rewritten(learned(), tiny_model, tiny_model.sites(), calibration, Trial(recipe(activation=floats)), None)
    with pytest.raises(UserError, match="rate=0"):
        learned(rate=0)
    with pytest.raises(UserError, match="transform.roles has 'nonsense'"):
        quantize(tiny_model, recipe(transform=learned(roles=["nonsense"])), lambda: points(0))
