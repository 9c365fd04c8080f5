"""Rotations of blocks: they are orthogonal, exact, and spread what they should."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from qdit.nn.basis import Permuted, Regular
from qdit.quant.hadamard import permuted, regular
from qdit.transform import PermutedHadamard, RegularHadamard
from qdit.transform.blocks import power_of_four, random_order
from qdit.transform.rotation import random_signs

ROLES = ["qkv", "attn_out", "ffn_up", "ffn_down"]


def test_the_regular_matrix_is_the_papers():
    four = 2 * regular(torch.eye(4), 4)
    assert four.tolist() == [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]
    naive: Float[Tensor, "16 16"] = torch.kron(four / 2, four / 2)
    made = regular(torch.eye(16), 16)
    torch.testing.assert_close(made, naive)
    torch.testing.assert_close(made @ made, torch.eye(16))
    torch.testing.assert_close(made, made.T)
    assert regular(torch.ones(1, 256), 256).abs().max().item() == pytest.approx(1)  # Sylvester's: 16, in one place
    assert power_of_four(1152, 256) == 64


def test_a_permuted_rotation_is_orthogonal_and_its_own_for_each_input():
    order, signs = random_order(0, "a", 96), random_signs(0, "a", 96)
    matrix = permuted(torch.eye(96), order, signs)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(96), atol=1e-5, rtol=0)
    assert (matrix[0] != 0).sum() == 32  # the largest power of two that divides 96
    assert not torch.equal(order, random_order(0, "b", 96))


@pytest.mark.parametrize(
    "part",
    [
        PermutedHadamard(name="p", roles=ROLES, seed=1),
        RegularHadamard(name="r", roles=ROLES, block=16),
    ],
    ids=["permuted", "regular"],
)
@torch.no_grad()
def test_a_rewritten_network_computes_the_same(part, tiny_model):
    sites = [site for site in tiny_model.sites() if site.role in ROLES]
    rewrite = part.rewrite(tiny_model, sites, {})
    random = torch.Generator().manual_seed(2)
    x, t, y = torch.randn(2, 4, 8, 8, generator=random), torch.tensor([3, 700]), torch.tensor([1, 2])
    before = tiny_model.denoise(x, t, y)
    with rewrite.installed(tiny_model):
        torch.testing.assert_close(tiny_model.denoise(x, t, y), before, atol=1e-4, rtol=1e-4)
    assert {type(module) for module in rewrite.inputs.values()} <= {Permuted, Regular}
    assert {left.site.name for left in part.run_time(tiny_model, sites)} <= set(rewrite.inputs)
