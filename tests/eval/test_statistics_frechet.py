"""The Fréchet distance against closed forms (evaluation dossier T1-T10)."""

import math

import numpy as np
import pytest
import torch

from qdit.eval.statistics import Moments, frechet_distance, frechet_jackknife, symmetric_root


def gaussian(dim: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(dim, dim + 3, generator=g, dtype=torch.float64)
    return torch.randn(dim, generator=g, dtype=torch.float64), a @ a.T / dim


def samples(n: int, dim: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    return torch.randn(n, dim, generator=g, dtype=torch.float64) @ mix / dim**0.5 + 0.3


def of_samples(x, y) -> float:
    a, b = Moments.of(x), Moments.of(y)
    return frechet_distance(a.mean, a.covariance(), b.mean, b.covariance())


def test_self_distance_symmetry_and_order():
    (m1, s1), (m2, s2) = gaussian(12, 0), gaussian(12, 1)
    assert abs(frechet_distance(m1, s1, m1, s1)) <= 1e-9 * float(s1.trace())
    assert frechet_distance(m1, s1, m2, s2) == pytest.approx(frechet_distance(m2, s2, m1, s1), rel=1e-10)
    x, y = samples(60, 8, 0), samples(60, 8, 1)
    assert of_samples(x[torch.randperm(60)], y) == pytest.approx(of_samples(x, y), rel=1e-10)


def test_shift_scale_and_commuting():
    x = samples(200, 16, 0)
    assert of_samples(x, x + 0.25) == pytest.approx(1.0, abs=1e-9)
    centred = x - x.mean(0)
    trace = float(Moments.of(x).covariance().trace())
    assert of_samples(centred, 3 * centred) == pytest.approx(4 * trace, rel=1e-9)
    l1, l2 = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 16.0]).double()
    mu = torch.tensor([1.0, 2.0, 0.0]).double()
    expected = 5 + float((l1.sqrt() - l2.sqrt()).square().sum())
    assert frechet_distance(mu, torch.diag(l1), 0 * mu, torch.diag(l2)) == pytest.approx(expected, rel=1e-12)


def test_non_commuting_closed_form():
    a, b = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.diag(torch.tensor([1.0, 3.0]))
    zero = torch.zeros(2)
    assert 8 - 2 * math.sqrt(14) == pytest.approx(0.5166852264521173, abs=1e-15)
    assert frechet_distance(zero, a, zero, b) == pytest.approx(0.5166852264521173, abs=1e-12)


def test_means_alone():
    eye = torch.eye(2048)
    assert frechet_distance(torch.zeros(2048), eye, torch.ones(2048), eye) == pytest.approx(2048, abs=1e-6)


def test_invariances():
    x, y = samples(80, 8, 0), samples(80, 8, 1)
    q, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    base = of_samples(x, y)
    assert of_samples(x @ q, y @ q) == pytest.approx(base, rel=1e-10)
    assert of_samples(5 * x, 5 * y) == pytest.approx(25 * base, rel=1e-10)
    assert of_samples(x + 7, y + 7) == pytest.approx(base, rel=1e-10)


def test_equals_eigenvalues_of_the_product():
    (m1, s1), (m2, s2) = gaussian(20, 0), gaussian(20, 1)
    eigenvalues = np.linalg.eigvals((s1 @ s2).numpy())
    expected = float((m1 - m2).square().sum() + s1.trace() + s2.trace()) - 2 * np.sqrt(eigenvalues).real.sum()
    assert frechet_distance(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-9)


def test_float32_mean_beside_float64_reference():
    m, s = gaussian(6, 0)
    assert frechet_distance((m + 1).float(), s, m, s) == pytest.approx(6, rel=1e-5)


@pytest.mark.parametrize(("n", "dim"), [(40, 64), (64, 64), (200, 16)])
def test_jackknife_equals_the_direct_formula(n, dim):
    """Fewer samples than features (by their Gram matrix) and more (by moments), whole and with groups left out."""
    x, (mu, sigma) = samples(n, dim, 3).float(), gaussian(dim, 4)
    found = frechet_jackknife(x, mu, symmetric_root(sigma))
    every = Moments.of(x)
    assert found.full == pytest.approx(frechet_distance(mu, sigma, every.mean, every.covariance()), rel=1e-6)
    for g in (0, 7, 19):
        rest = Moments.of(x[torch.arange(n) % 20 != g])
        expected = frechet_distance(mu, sigma, rest.mean, rest.covariance())
        assert float(found.left_out[g]) == pytest.approx(expected, rel=1e-6)


def test_rank_deficient_equals_nuclear_norm():
    x, (mu, sigma) = samples(30, 50, 5), gaussian(50, 6)
    root = symmetric_root(sigma)
    centred = (x - x.mean(0)) / math.sqrt(29)
    nuclear = float(torch.linalg.matrix_norm(centred @ root, "nuc"))
    traces = float((x.mean(0) - mu).square().sum() + sigma.trace() + centred.square().sum())
    assert frechet_jackknife(x, mu, root).full == pytest.approx(traces - 2 * nuclear, rel=1e-6)
