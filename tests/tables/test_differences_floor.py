"""The script of the noise floor: what it changes is back afterwards, and equal samples are said to be equal."""

import runpy
from pathlib import Path

import pytest
import torch

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "experiments/comparison/noise_floor.py"))


def test_every_weight_of_the_patch_embedding_is_the_next_one_meanwhile(tiny_model):
    weight = tiny_model.denoiser.get_submodule("pos_embed.proj").weight
    before = weight.detach().clone()
    with SCRIPT["moved"](tiny_model):
        assert (weight > before).all()
        assert torch.equal(torch.nextafter(weight, torch.full_like(weight, -torch.inf)), before)
    assert torch.equal(weight, before)


def test_pairs_are_compared_with_each_other_and_with_full_precision():
    full = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    usual, noise = 1.1 * full, torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert SCRIPT["shown"](full, usual, usual.clone()) == ["the same bits", "0"]
    apart, change = SCRIPT["shown"](full, usual, usual + 0.011 * noise)
    assert float(apart) == pytest.approx(40, abs=0.3)  # a hundredth of the signal
    mean, error = map(float, change.split(" ± "))
    assert abs(mean) < 0.15
    assert 0 < error < 0.05
