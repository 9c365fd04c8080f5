"""Diagonal weights of layers' outputs: closed forms, batching, and the released target, which has no gradient."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from qdit.calibration import CalibrationData
from qdit.hessian import DiffusionLoss, LegacyKL, Probe, Unweighted
from qdit.hessian import importance as importances
from qdit.hessian.importance import output_importances
from qdit.model.base import Site
from qdit.nn.clock import Clock


class Pixels:
    """A network that maps each pixel by itself: two linear layers without anything between."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, channels=3, hidden=5):
        generator = torch.Generator().manual_seed(0)
        self.denoiser = nn.ModuleDict({"up": nn.Linear(channels, hidden), "down": nn.Linear(hidden, channels)})
        for parameter in self.denoiser.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator))
        self.clock = Clock()

    def denoise(self, x, t, y):
        return self.denoiser["down"](self.denoiser["up"](x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    def sites(self):
        return [site("up", 5)]

    def scheduler_config(self):
        return {"num_train_timesteps": 1000}


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Every entry of the prediction in turn: the sum of squares is the diagonal of JᵀJ, without an error."""

    def points(self, model, data, seed):
        return data

    def slopes(self, output, points, seed):
        size = output[0].numel()
        for unit in torch.eye(size):
            yield unit.mul(size**0.5).view(output.shape[1:]).expand(output.shape)  # squares are averaged over slopes


def site(name, out):
    return Site(name, "ffn_up", 0, 1, out, 4, 0)


def points(n=6, channels=3, side=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, channels, side, side, generator=generator)
    return CalibrationData(x, torch.arange(n) * 100, torch.zeros(n, dtype=torch.long), 4)


def test_many_probes_give_the_diagonal_of_the_gauss_newton_matrix():
    model = Pixels()
    found = output_importances(model, points(2), [site("up", 5)], Probe(probes=2000), 0)["up"]
    diagonal = model.denoiser["down"].weight.square().sum(0)  # JᵀJ of a pixel's hidden channels
    torch.testing.assert_close(found.channels, diagonal, rtol=0.05, atol=0)
    assert (found.rows / diagonal.mean() - 1).square().mean().sqrt() < 0.05


def test_half_the_weighted_square_is_the_change_of_a_quadratic_loss():
    model = Pixels(1, 1)
    data = points(1, 1, 1)
    found = output_importances(model, data, [site("up", 1)], Basis(), 0)["up"]
    moved, x = 0.37, data.x
    before = model.denoise(x, None, None)
    model.denoiser["up"].bias.add_(moved)
    change = 0.5 * (model.denoise(x, None, None) - before).square().sum()
    torch.testing.assert_close(0.5 * moved**2 * found.rows.sum(), change)


@pytest.mark.parametrize("target", [Probe(), DiffusionLoss()])
def test_neither_batches_nor_other_points_matter(target, tiny_model, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, 8, 8, generator=generator)
    data = CalibrationData(x, torch.tensor([999, 3, 500, 20, 7]), torch.tensor([0, 3, 10, 1, 10]), 5)
    sites = tiny_model.sites()
    whole = output_importances(tiny_model, data, sites, target, 3)
    monkeypatch.setattr(importances, "TOKENS", 2 * max(site.tokens for site in sites))
    parts = output_importances(tiny_model, data, sites, target, 3)
    other_seed = output_importances(tiny_model, data, sites[:1], target, 4)
    for name, one in whole.items():
        torch.testing.assert_close(parts[name].rows, one.rows, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(parts[name].channels, one.channels, rtol=1e-3, atol=1e-9)
        assert one.rows.shape[0] == 5
        assert one.rows.mean() > 0
    assert {name: one.rows.shape[1] for name, one in whole.items()} == {s.name: s.tokens for s in sites}
    assert not torch.equal(other_seed[sites[0].name].rows, whole[sites[0].name].rows)


def test_the_diffusion_loss_is_taken_at_points_with_noise_of_their_own():
    model, data = Pixels(), points()
    moved = DiffusionLoss().points(model, data, 0)
    assert moved.x.shape == data.x.shape
    assert torch.equal(moved.t, data.t)
    assert not torch.allclose(moved.x[-1], data.x[-1])
    # At time 0 there is next to no noise that could be replaced.
    torch.testing.assert_close(moved.x[0], data.x[0], rtol=0, atol=0.2)


def test_the_released_divergence_warns_that_it_has_no_gradient(caplog):
    model = Pixels()
    found = output_importances(model, points(), [site("up", 5)], LegacyKL(), 0)["up"]
    assert "gradient is zero" in caplog.text
    assert found.rows.max() < 1e-10
    caplog.clear()
    output_importances(model, points(), [site("up", 5)], Probe(), 0)
    assert caplog.text == ""


def test_without_a_loss_all_outputs_count_alike_and_the_network_is_not_run():
    model = Pixels()
    model.denoiser["up"].forward = None
    found = Unweighted().importances(model, points(), [site("up", 5)], 0)["up"]
    assert found.rows.shape == (6, 4)
    assert found.channels.shape == (5,)
    assert (found.rows == 1).all()
    assert (found.channels == 1).all()
