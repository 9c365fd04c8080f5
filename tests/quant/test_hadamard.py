"""Hadamard matrices are Hadamard matrices; the fast transform is the dense one (specs: vidit-q §6.1, baselines §3)."""

import math
from functools import reduce

import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard

from qdit.quant.hadamard import _factors, base_matrix, hadamard, operations, rotate, split, sylvester

KNOWN = [12, 20, 24, 28, 36, 44, 48, 60, 68, 72, 76, 84, 108, 140]
SIZES = [
    (64, None),
    (72, None),
    (1152, None),
    (1152, 128),
    (1920, None),
    (2240, None),
    (4608, None),
    (4608, 128),
    (400, None),
    (5600, None),
]


def signs(n, seed=0):
    return (2 * torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed)) - 1).to(torch.int8)


@pytest.mark.parametrize("order", KNOWN)
def test_paleys_matrices_are_hadamard(order):
    matrix = base_matrix(order)
    assert torch.equal(matrix.abs(), torch.ones_like(matrix))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))
    assert split(order)[1][0] in KNOWN


@pytest.mark.parametrize("order", [1, 2, 8, 64])
def test_sylvesters_matrices_are_scipys(order):
    assert torch.equal(sylvester(order), torch.tensor(scipy_hadamard(order), dtype=torch.float64))


@pytest.mark.parametrize(("n", "block"), SIZES)
def test_fast_is_dense_and_orthogonal(n, block):
    power, bases = split(block or n)
    dense = reduce(torch.kron, map(base_matrix, bases), sylvester(2**power)) / (block or n) ** 0.5
    dense = torch.block_diag(*[dense] * (n // (block or n)))
    x = torch.randn(2, 3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (hadamard(x, block) - x @ dense).abs().max() < 1e-12
    assert (hadamard(x.float(), block) - (x @ dense).float()).abs().max() < 5e-6
    some = rotate(torch.eye(n, dtype=torch.float64)[:: max(1, n // 96)], signs(n), block)
    assert (some @ some.T - torch.eye(len(some), dtype=torch.float64)).abs().max() < 1e-10


def test_half_precision_is_only_rounded_at_the_end():
    x = torch.randn(4, 1152, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(hadamard(x), hadamard(x.float()).bfloat16())


def test_products_do_not_change():
    x, w = (torch.randn(k, 1152, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (5, 7))
    exact, rotated = x @ w.T, rotate(x, signs(1152), None) @ rotate(w, signs(1152), None).T
    assert (rotated - exact).abs().max() < 1e-10 * exact.abs().max()
    rotated = rotate(x.float(), signs(1152), None) @ rotate(w.float(), signs(1152), None).T
    assert (rotated - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.parametrize("n", [1024, 1152])
def test_an_outlier_is_spread_over_its_token(n):
    """max / rms falls from √n-like to about √(2 ln n)."""
    x = torch.randn(16, n, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 200.0

    def incoherence(x):
        return (x.abs().amax(1) / x.square().mean(1).sqrt()).mean().item()

    assert incoherence(x) > 0.9 * n**0.5
    assert incoherence(rotate(x, signs(n), None)) < 1.2 * math.sqrt(2 * math.log(n))


@pytest.mark.parametrize(
    ("n", "advice"), [(1000, "blocks of 8"), (2012, "blocks of 4"), (26, "blocks of 2"), (7, "odd")]
)
def test_unknown_sizes_name_a_block(n, advice):
    with pytest.raises(ValueError, match=f"for {n} channels; .*{advice}"):
        split(n)


def test_operations():
    assert operations(1024) == 1024 * 11
    assert operations(1152) == 1152 * (1 + 5 + 36)
    assert operations(1152, 128) == 1152 * 8
    assert operations(5600) == 5600 * (1 + 1 + 20 + 140)


def test_factors_that_a_pipeline_made_first_serve_gradients():
    """Pipelines sample under `inference_mode`; what is kept from there must be no inference tensor."""
    _factors.cache_clear()
    with torch.inference_mode():
        hadamard(torch.ones(1, 24))
    x = torch.randn(2, 24, requires_grad=True)
    hadamard(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())
