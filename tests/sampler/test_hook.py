"""The sampler's hook: a step's gain and noise as diffusers makes them; variances add up to the original."""

import pytest
import torch

from qdit.sampler.ddim import DDIM
from qdit.sampler.ddpm import DDPM
from qdit.sampler.hook import Transition, absorbed, upcoming
from qdit.seeding import generator

LABELS = torch.tensor([1, 7])


def make(kind, **changes):
    defaults = {"name": "test", "steps": 5, "guidance": 1.5, "guided_channels": None, "eta": 0.0, "spacing": "linspace"}
    return kind(**(defaults | changes))


@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize(("kind", "eta"), [(DDIM, 0.0), (DDIM, 0.6), (DDIM, 1.0), (DDPM, 1.0)])
def test_transitions_are_those_of_the_scheduler(tiny_model, kind, eta, channels, monkeypatch):
    """Gain by a difference quotient, noise by what another draw changes; the last step adds none."""
    monkeypatch.setattr(tiny_model, "learned_variance", channels == 8)
    sampler = make(kind, eta=eta)
    scheduler, own, _ = sampler.make_scheduler(tiny_model)
    x, output = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    x, output = x[:, :4], output[:, :channels]
    more = output.clone()
    more[:, :4] += 1
    for t in own:
        found = sampler.transition(scheduler, output, t)
        step, other = (
            sampler.step(scheduler, each, t, x, [generator(0, "step", i) for i in range(2)]) for each in (output, more)
        )
        torch.testing.assert_close(other - step, torch.full_like(x, found.gain), atol=2e-4, rtol=2e-3)
        again = sampler.step(scheduler, output, t, x, [generator(1, "step", i) for i in range(2)])
        draws = [upcoming([generator(seed, "step", i) for i in range(2)], x) for seed in (0, 1)]
        torch.testing.assert_close(step - again, found.std * (draws[0] - draws[1]), atol=1e-5, rtol=1e-3)
    assert found.std.abs().max() < 1e-6


def test_looking_at_the_noise_does_not_use_it_up():
    streams = [generator(0, "step", i) for i in range(2)]
    seen = upcoming(streams, torch.zeros(2, 4, 8, 8))
    assert torch.equal(seen, torch.stack([torch.randn(4, 8, 8, generator=g) for g in streams]))


def test_the_final_variance_is_the_steps_own():
    z, r = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    transition, error = Transition(-0.7, torch.tensor(0.5, dtype=torch.float64)), 0.3
    noisy = absorbed(0.5 * z + transition.gain * error**0.5 * r, z, transition, error)
    assert noisy.var().item() == pytest.approx(0.25, rel=0.01)
    too_much = absorbed(0.5 * z, z, transition, 10.0)
    assert too_much.abs().max() < 1e-12  # more than the step's noise cannot be absorbed


class Spoil:
    """An error of known variance in every prediction; the hook of the second sampler lets the noise absorb it."""

    def __init__(self, variance, told):
        self.variance, self.told = variance, told
        self.generator = torch.Generator().manual_seed(5)

    def output(self, output, timestep):
        noise = torch.randn(output[:, :4].shape, generator=self.generator) * self.variance**0.5
        return torch.cat([output[:, :4] + noise, output[:, 4:]], 1)

    def error(self, timestep):
        return self.told


@pytest.mark.parametrize(("kind", "eta"), [(DDIM, 1.0), (DDPM, 1.0)])
def test_absorbing_brings_the_spread_of_samples_back(kind, eta, tiny_model):
    """With independent errors in a linear model, the variance of the samples is that without errors."""
    model = tiny_model
    model.denoise = lambda x, t, y: torch.cat([0.9 * x, torch.zeros_like(x)], 1)
    sampler, indices, labels = (
        make(kind, eta=eta, steps=10, guidance=1.0),
        list(range(64)),
        torch.zeros(64, dtype=torch.long),
    )
    clean = sampler.sample(model, indices, labels, 0).var()
    spoilt = sampler.sample(model, indices, labels, 0, hook=Spoil(0.02, 0.0)).var()
    absorbed_ = sampler.sample(model, indices, labels, 0, hook=Spoil(0.02, 0.02)).var()
    assert spoilt > 1.01 * clean
    assert (absorbed_ - clean).abs() < 0.5 * (spoilt - clean)
