"""Noise by index (T31): independent of batch, order and neighbours."""

import torch

from qdit.seeding import CALIBRATION, CORRECTION, DIAGNOSIS, EVALUATION, SEARCH, generator, key, noise, uniform


def test_noise_is_a_function_of_seed_stream_and_index():
    first = noise(0, "latent", 3, (4, 8, 8))
    noise(0, "latent", 4, (4, 8, 8))
    assert first.dtype == torch.float32
    assert first.shape == (4, 8, 8)
    assert torch.equal(first, noise(0, "latent", 3, (4, 8, 8)))
    for other in [(1, "latent", 3), (0, "step", 3), (0, "latent", 4)]:
        assert not torch.equal(first, noise(*other, (4, 8, 8)))


def test_global_seed_is_neither_read_nor_changed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    generator(0, "latent", 0)
    noise(0, "latent", 0, (16,))
    assert torch.equal(before, torch.get_rng_state())


def test_keys_have_63_bits_and_fixed_values():
    keys = [key(0, "latent", i) for i in range(1000)]
    assert len(set(keys)) == 1000
    assert min(keys) >= 0
    assert 2**62 < max(keys) < 2**63
    assert key(0, "latent", 0) == 3463571482226016393  # as by b2sum: it must never change


def test_neighbours_are_uncorrelated_standard_normal():
    draws = torch.stack([noise(0, "latent", i, (4, 8, 8)).flatten() for i in range(400)])
    assert abs(draws.mean()) < 0.02
    assert abs(draws.std() - 1) < 0.02
    assert abs((draws[1:] * draws[:-1]).mean()) < 0.02


def test_uniform_is_in_the_unit_interval_and_even():
    draws = torch.tensor([uniform(0, "label", i) for i in range(4000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert (torch.histc(draws, 10, 0, 1) - 400).abs().max() < 80


def test_no_use_shares_noise_with_another_and_none_ever_moves():
    uses = (EVALUATION, CALIBRATION, DIAGNOSIS, SEARCH, CORRECTION)
    assert uses == (0, 10_000_000, 20_000_000, 30_000_000, 40_000_000)
