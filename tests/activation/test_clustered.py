"""Clusters of channels with static ranges (DGQ): k-means, its grids, and a recipe that has them."""

from dataclasses import replace

import pytest
import torch
from helpers.timed import UP, output, points, recipe, static

from qdit.activation import Clustered, EqualGroups, SidedInputs
from qdit.activation.clustered import clusters_of, rounded_by_cluster
from qdit.calibration.reservoir import Sampled
from qdit.errors import UserError
from qdit.ledger import activation_storage_bits
from qdit.method import quantize
from qdit.nn.clock import Clock
from qdit.nn.clusters import ClusterQuantizer
from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.affine import affine, nearest
from qdit.quant.grid import fake_quantize
from qdit.quant.ranges import MSE, MinMax
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import ALL
from qdit.transform import Trial


def clustered(**changes):
    return Clustered(**{"granularity": "tensor", "grid": "asymmetric", "range": MinMax()} | changes)


def values(rows=200, channels=40):
    random = torch.Generator().manual_seed(0)
    size = torch.tensor([0.1, 1.0, 8.0, 30.0]).repeat(channels // 4)
    return torch.randn(rows, channels, generator=random) * size + 0.1 * size


def rounder(x, **changes):
    part = clustered(**changes)
    spec = part.at("qkv", part.spec(4))
    known = Sampled(x.T, torch.ones(len(x)), x.flatten()) if spec.by_channel else x.flatten()
    return part.quantizer(spec, [known], ALL, Clock())


def naive_k_means(ends, count):
    """Lloyd's algorithm channel by channel, from the same start."""
    order = sorted(range(len(ends)), key=lambda c: ends[c][1] - ends[c][0])
    centres = [ends[order[int((k + 0.5) * len(ends) / count)]] for k in range(count)]

    def nearest_of(c):
        return min(range(count), key=lambda k: sum((a - b) ** 2 for a, b in zip(c, centres[k], strict=True)))

    own = [nearest_of(c) for c in ends]
    for _ in range(100):
        for k in range(count):
            mine = [c for c, cluster in zip(ends, own, strict=True) if cluster == k]
            if mine:
                centres[k] = tuple(sum(part) / len(mine) for part in zip(*mine, strict=True))
        own = [nearest_of(c) for c in ends]
    return own


@pytest.mark.parametrize("count", [2, 3, 7])
def test_k_means_is_the_naive_one_for_several_inputs_at_once(count):
    random = torch.Generator().manual_seed(1)
    ends = torch.stack([-torch.rand(3, 25, generator=random), torch.rand(3, 25, generator=random)], -1)
    found = clusters_of(ends, count)
    for one, own in zip(ends.double(), found, strict=True):
        assert own.tolist() == naive_k_means([tuple(c.tolist()) for c in one], count)
    assert clusters_of(ends[:, :count], count).tolist() == [list(range(count))] * 3


def test_channels_that_are_alike_share_a_grid_and_each_value_has_its_clusters():
    x = values()
    module = rounder(x, clusters=4)
    assert isinstance(module, ClusterQuantizer)
    own = module.members[0]
    assert all(len(own[start::4].unique()) == 1 for start in range(4))
    spec, made = QuantSpec(bits=4, granularity="tensor", dynamic=False), module(x)
    for start in range(4):
        part = x[:, start::4]
        grid = affine(part.amin().view(1, 1), part.amax().view(1, 1), spec)
        assert torch.equal(made[:, start::4], fake_quantize(part, spec, grid))


def test_more_clusters_are_better_and_one_is_the_tensors_grid():
    x = values()
    errors = [(rounder(x, clusters=count)(x) - x).square().mean().item() for count in (1, 2, 4, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.6 * errors[0]  # the widest channels err as before, and are a quarter
    assert isinstance(rounder(x, clusters=1), StaticQuantizer)
    each = [affine(c.amin().view(1, 1), c.amax().view(1, 1), QuantSpec(bits=4, granularity="tensor")) for c in x.T]
    alone = torch.cat(
        [nearest(c, g.scale[0], g.zero_point[0], 0, 15).view(-1, 1) for c, g in zip(x.T, each, strict=True)], 1
    )
    torch.testing.assert_close(rounder(x, clusters=40)(x), alone)


def test_matrices_of_a_trial_are_rounded_as_inputs_with_just_their_values_are(tiny_model):
    x = torch.stack([values(50, 32), 3 * values(50, 32).flip(1)])
    spec = clustered().spec(4)
    for one, made in zip(x, rounded_by_cluster(x, spec, 8), strict=True):
        assert torch.equal(made, rounder(one)(one))
    trial = Trial(recipe(clustered(clustered=["ffn_up"]), bits=(8, 4)))
    sites = {site.role: site for site in tiny_model.sites()}
    assert torch.equal(trial.input(sites["ffn_up"], x), rounded_by_cluster(x, spec, 8))
    assert torch.equal(trial.input(sites["attn_out"], x[0]), rounder(x[0], clusters=1)(x[0]))


def test_one_cluster_is_static_bit_for_bit_and_groups_of_timesteps_have_their_own(tiny_model):
    plain = quantize(tiny_model, recipe(static(), bits=(8, 6)), points)
    one = quantize(tiny_model, recipe(clustered(clusters=1), bits=(8, 6)), points)
    assert one.policy == plain.policy
    assert torch.equal(output(tiny_model, one), output(tiny_model, plain))
    made = quantize(tiny_model, recipe(clustered(time=EqualGroups(groups=2)), bits=(16, 4)), points)
    module = made.layers[UP].quantizer
    assert module.numbers.shape == (2, 8, 2)
    data, x = points(), torch.randn(2, 5, 32)
    with tiny_model.clock.showing(data.t[[0, -1]]):
        both = module(x)
    for one, (t, expected) in zip(x, zip(data.t[[0, -1]], both, strict=True), strict=True):
        with tiny_model.clock.showing(t.view(1)):
            assert torch.equal(module(one.unsqueeze(0))[0], expected)


def test_the_ledger_counts_a_grid_a_cluster_and_a_number_a_channel():
    spec = QuantSpec(bits=4, granularity="tensor", grid="clustered", dynamic=False, clusters=8)
    assert activation_storage_bits(spec, channels=32) == 8 * (16 + 4) + 3 * 32
    assert activation_storage_bits(replace(spec, time_groups=2), channels=32) == 2 * (8 * (16 + 4) + 3 * 32)
    symmetric = replace(spec, base="symmetric", clusters=9)
    assert activation_storage_bits(symmetric, channels=32) == 9 * 16 + 4 * 32
    assert spec.operand_bits == 4


def test_two_regions_come_first_and_mistakes_are_named():
    part = clustered(regions=SidedInputs(roles=["ffn_down"]))
    assert {role: part.at(role, part.spec(8)).grid for role in ("qkv", "ffn_down", "adaln")} == {
        "qkv": "clustered",
        "ffn_down": "two_sided",
        "adaln": "asymmetric",
    }
    for changes, message in (
        ({"clusters": 0}, "clusters=0"),
        ({"range": MSE()}, "those of MSE; use activation/range=minmax"),
    ):
        with pytest.raises(UserError, match=message):
            clustered(**changes)
    with pytest.raises(UserError, match="goes with grid 'clustered' alone"):
        QuantSpec(bits=4, clusters=2)
