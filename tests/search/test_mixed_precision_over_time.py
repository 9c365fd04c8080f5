"""Searches with a transform by range of timesteps: all weights of a site are counted, deployed and found again."""

from dataclasses import replace

import torch

from qdit.activation import DynamicActivation
from qdit.checkpoint import checkpoint
from qdit.eval.paired import LatentMSE
from qdit.ledger import ledger
from qdit.method import quantize
from qdit.nn.switch import TimedLinear
from qdit.quant.ranges import MinMax
from qdit.sampler.ddim import DDIM
from qdit.search import ILP, Fixed, Hessian, MixedPrecision
from qdit.search.allocate import Greedy
from qdit.search.bit_budget import BitBytes, MeanBits
from qdit.search.budget import Bytes, MeanGroup
from qdit.search.metric_groups import MetricGroup
from qdit.search.sensitivity import Paired
from qdit.search.split import Even
from qdit.transform import ChannelScaling
from qdit.transform.statistics import Maximum
from qdit.transform.timestep_aware import TimestepAware
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]
SMOOTH = ChannelScaling(name="smooth", roles=["qkv", "ffn_up"], alpha=0.5, statistic=Maximum())
AWARE = TimestepAware(name="timestep_aware", ranges=2, each=SMOOTH)
SAMPLER = DDIM(name="ddim", steps=4, guidance=1.0, guided_channels=None, eta=0.0, spacing="leading")


def by_row(parts, **changes):
    grids = {
        "weight": WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
        "activation": DynamicActivation(granularity="row", grid="symmetric"),
    }
    return parts.recipe(transform=AWARE, **grids | changes)


def search(budget) -> MixedPrecision:
    return MixedPrecision(
        widths=[2, 4, 8],
        ranges=4,
        groups={"quality": MetricGroup(metric=LatentMSE(), roles=BLOCKS)},
        samples=Paired(num_samples=2, batch_size=2),
        budget=budget,
        allocator=Greedy(),
        split=Even(),
    )


def output(model, quantized):
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), quantized.installed(model):
        return model.denoise(x, torch.tensor([999, 740, 260, 5]), torch.tensor([1, 10, 3, 2]))


def spent(model, quantized, recipe):
    return ledger(model.denoiser, model.sites(), quantized.policy, (), recipe.run_time(model))


def test_bits_over_time_in_bases_over_time(parts, tiny_model, tmp_path):
    uniform = quantize(tiny_model, by_row(parts), parts.data)
    for budget in (BitBytes(uniform=4), BitBytes(uniform=4, over="model"), MeanBits(at_most=5.0)):
        recipe = by_row(parts, search=search(budget))
        found = quantize(tiny_model, recipe, parts.data, tmp_path / "cache", parts.setting(sampler=SAMPLER))
        costs, limit = spent(tiny_model, found, recipe), spent(tiny_model, uniform, recipe)
        if isinstance(budget, BitBytes):
            assert costs.model_bytes <= limit.model_bytes
        assert {layer.bases for layer in found.policy.values()} == {1, 2}
    nested = [layer for layer in found.layers.values() if isinstance(layer, TimedLinear) and len(layer.variants) > 1]
    assert any(isinstance(layer.variants[0], TimedLinear) for layer in nested)
    checkpoint.save(found, tmp_path / "saved", checkpoint.provenance(tiny_model))
    loaded = checkpoint.load(tmp_path / "saved", tiny_model)
    assert torch.equal(output(tiny_model, loaded), output(tiny_model, found))
    found.policy.save(tmp_path / "policy.yaml")
    fixed = by_row(parts, search=Fixed(policy=str(tmp_path), budget=MeanGroup(at_least=1)))
    assert fixed.problems(tiny_model.sites()) == []
    again = quantize(tiny_model, fixed, parts.data, tmp_path / "cache", parts.setting(sampler=SAMPLER))
    assert again.policy == found.policy
    assert torch.equal(output(tiny_model, again), output(tiny_model, found))


def test_a_roles_own_format_is_that_of_the_policy_and_of_the_layers(parts, tiny_model, tmp_path):
    weight = WeightGrid(granularity="row", grid="float", range=MinMax(), by_role={"ffn_up": "e3m0"})
    own = replace(search(MeanBits(at_most=5.0)), widths=[4, 8])
    recipe = replace(by_row(parts, weight=weight, search=own), transform=None)
    found = quantize(tiny_model, recipe, parts.data, None, parts.setting(sampler=SAMPLER))
    grids = {site.role: found.policy[site.name].weights for site in tiny_model.sites() if site.name in found.policy}
    assert {spec.grid for spec in grids["ffn_up"]} <= {"e3m0", "e4m3"}
    assert any(layer.spans for layer in found.policy.values())
    checkpoint.save(found, tmp_path, checkpoint.provenance(tiny_model))
    loaded = checkpoint.load(tmp_path, tiny_model)
    assert torch.equal(output(tiny_model, loaded), output(tiny_model, found))


def test_group_sizes_are_chosen_within_bytes_of_all_bases(parts, tiny_model):
    uniform = parts.recipe(transform=AWARE)
    made = parts.recipe(transform=AWARE, search=ILP(group_sizes=[8, 16, 32], budget=Bytes(uniform=16)))
    found = quantize(tiny_model, made, parts.data, None, parts.setting(sampler=SAMPLER))
    limit = spent(tiny_model, quantize(tiny_model, uniform, parts.data), uniform)
    assert spent(tiny_model, found, made).model_bytes <= limit.model_bytes
    assert output(tiny_model, found).isfinite().all()


def test_a_search_that_needs_one_weight_a_site_says_so(parts, tiny_model):
    made = parts.recipe(
        transform=AWARE, calibration=object(), search=Hessian(group_sizes=[16, 32], budget=MeanGroup(at_least=16))
    )
    assert made.problems(tiny_model.sites())[0].startswith("search=hessian weighs the errors of one weight a site")
