"""Quantizers that learn their steps, against their quantizer and autograd."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from qdit.nn.clock import Clock
from qdit.nn.quantizers import DynamicQuantizer, StaticQuantizer, quantizer_of
from qdit.quant.affine import affine
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import Groups
from qdit.rounding.reconstruction.ste import LearnedStep, Straight, fixed, learnable, quantizers


def static(bits=4):
    spec = QuantSpec(bits=bits, granularity="tensor", dynamic=False)
    return StaticQuantizer(spec, affine(torch.tensor([[-1.0]]), torch.tensor([[2.0]]), spec))


@pytest.mark.parametrize("relative", [True, False])
def test_learned_steps_give_what_their_quantizer_gives_and_autograds_gradients(relative):
    quantizer = static()
    step, x = (
        LearnedStep(quantizer, relative=relative),
        (3 * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))),
    )
    assert torch.equal(step(x), quantizer(x))
    factor = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    found = torch.autograd.grad((step(x) * factor).sum(), [x, step.value])
    scale = quantizer.scale.clone().requires_grad_()
    scaled = x / scale
    rounded = scaled + (scaled.round() - scaled).detach()
    plain = rounded.clamp(quantizer.low - quantizer.zero_point, quantizer.high - quantizer.zero_point) * scale
    expected = torch.autograd.grad((plain * factor).sum(), [x, scale])
    expected = expected[0], expected[1] * step.unit
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_stays_positive():
    step = LearnedStep(static())
    with torch.no_grad():
        step.value -= 1000
    step.bound()
    torch.testing.assert_close(step.scale.detach(), 0.1 * step.quantizer.scale)


def test_other_quantizers_pass_the_gradient():
    quantizer = DynamicQuantizer(QuantSpec(bits=3))
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    output = Straight(quantizer)(x)
    assert torch.equal(output, quantizer(x.detach()))
    (gradient,) = torch.autograd.grad((2 * output).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 2))


def test_quantizers_are_found_once_and_transforms_left_alone():
    shared, scale = static(), nn.Identity()
    layers = {"a": nn.Sequential(scale, shared), "b": nn.Sequential(shared, DynamicQuantizer(QuantSpec(bits=8)))}
    found = learnable(layers, {scale})
    assert {path: type(module) for path, module in found.items()} == {"a.1": LearnedStep, "b.1": Straight}


def test_static_quantizers_with_several_numbers_are_fixed():
    spec = QuantSpec(bits=4, granularity="tensor", dynamic=False)
    grids = [affine(torch.tensor([[-1.0]]), torch.tensor([[end]]), spec) for end in (1.0, 2.0)]
    timed = quantizer_of(replace(spec, time_groups=2), grids, Groups((500,)), Clock())
    layers = {"a": nn.Sequential(static(), timed, DynamicQuantizer(QuantSpec(bits=4)))}
    assert [fixed(module) for _, module in quantizers(layers, set())] == [False, True, False]
    made = learnable(layers, set())
    assert [type(module) for module in made.values()] == [LearnedStep, Straight, Straight]
