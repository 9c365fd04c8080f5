"""Transforms by range of timesteps: exact at every time, one range is the transform itself, one weight a range."""

from dataclasses import replace

import pytest
import torch
from helpers.rewriting import BLOCKS, TRIAL, assert_same, output, points, recipe, scaling, unable_to_fold

from qdit.activation import StaticActivation
from qdit.attention import UniformAttention
from qdit.checkpoint import checkpoint
from qdit.errors import UserError
from qdit.ledger import ledger, weight_storage_bits
from qdit.method import quantize
from qdit.nn.switch import TimedLinear
from qdit.policies import LayerSpec, Policy
from qdit.quant.ranges import MinMax
from qdit.rounding import GPTQ, AdaRound
from qdit.runs.plan import weight_text
from qdit.scope import Scope
from qdit.transform import Chain, ChannelScaling, Hadamard, rewritten
from qdit.transform.mean import Mean
from qdit.transform.statistics import Maximum
from qdit.transform.timestep_aware import RewriteByRange, TimestepAware, points_within, unabsorbing

SITE = "transformer_blocks.0.attn1.to_q"
SMOOTH = ChannelScaling(name="smooth", roles=BLOCKS, alpha=0.5, statistic=Maximum())
ROTATED = Chain(
    name="smooth_hadamard",
    steps={"smooth": SMOOTH, "hadamard": Hadamard(name="hadamard", roles=BLOCKS, block=None, seed=0)},
)


def aware(ranges=2, each=SMOOTH):
    return TimestepAware(name="timestep_aware", ranges=ranges, each=each)


def unequal_points(n=12):
    """Inputs that grow with the timestep, channel by channel, so that ranges differ."""
    data = points(0, n)
    return replace(data, x=data.x * (1 + data.t.view(-1, 1, 1, 1) / 250 * torch.arange(4).view(1, -1, 1, 1)))


def fitted(model, **changes):
    return quantize(model, recipe(**{"transform": aware()} | changes), unequal_points)


@pytest.mark.parametrize("each", [SMOOTH, ROTATED, scaling()], ids=["smooth", "smooth_hadamard", "everywhere"])
@pytest.mark.parametrize("ranges", [1, 2, 3])
def test_full_precision_is_kept_at_every_timestep(tiny_model, ranges, each):
    sites = tiny_model.sites()
    rewrite = rewritten(aware(ranges, each), tiny_model, sites, unequal_points, TRIAL, None)
    assert_same(output(tiny_model, rewrite), output(tiny_model))  # a batch that mixes timesteps
    data = points(1)
    for t in (0, 300, 499, 500, 700, 999):
        timesteps = torch.full_like(data.t, t)
        with torch.no_grad():
            expected = tiny_model.denoise(data.x, timesteps, data.y)
            with rewrite.installed(tiny_model):
                assert_same(tiny_model.denoise(data.x, timesteps, data.y), expected)
    assert all(isinstance(layer, TimedLinear) for layer in rewrite.layers.values()) == (ranges > 1)


def test_factors_are_those_of_the_points_of_a_range(tiny_model):
    transform, sites, data = aware(), tiny_model.sites(), unequal_points()
    measured = transform.measure(tiny_model, sites, lambda: data, TRIAL)
    groups = transform.groups(data)
    places = sorted({key.partition("/")[0] for key in measured}, key=lambda place: int(place.partition("-")[0]))
    assert places == ["0-454", "544-999"]
    for number, place in enumerate(places):
        part = points_within(data, groups, number)
        assert part.timesteps == data.timesteps[6 * number : 6 * number + 6]
        for key, value in SMOOTH.measure(tiny_model, sites, lambda part=part: part, TRIAL).items():
            assert torch.equal(measured[f"{place}/{key}"], value)
    assert not torch.equal(measured[f"0-454/{SITE}"], measured[f"544-999/{SITE}"])


@pytest.mark.parametrize("rounding", [None, GPTQ()], ids=["nearest", "gptq"])
def test_one_range_is_the_transform_itself_unfolded(tiny_model, monkeypatch, rounding):
    changes = {"rounding": rounding} if rounding else {}
    actual = output(tiny_model, fitted(tiny_model, transform=aware(1), **changes))
    unfolded = unable_to_fold(tiny_model, monkeypatch)
    assert torch.equal(actual, output(unfolded, fitted(unfolded, transform=SMOOTH, **changes)))


@pytest.mark.parametrize("rounding", [None, GPTQ(), AdaRound(iterations=4)], ids=["nearest", "gptq", "adaround"])
def test_a_range_is_a_fit_on_its_own_points_in_its_basis(tiny_model, monkeypatch, rounding):
    changes = {"rounding": rounding} if rounding else {}
    quantized, data = fitted(tiny_model, **changes), unequal_points()
    groups, unfolded = aware().groups(data), unable_to_fold(tiny_model, monkeypatch)
    for number, t in enumerate((100, 900)):
        part = points_within(data, groups, number)
        alone = quantize(unfolded, recipe(transform=SMOOTH, **changes), lambda part=part: part)
        seen = points(1)
        timesteps = torch.full_like(seen.t, t)
        with torch.no_grad():
            with quantized.installed(tiny_model):
                actual = tiny_model.denoise(seen.x, timesteps, seen.y)
            with alone.installed(tiny_model):
                assert torch.equal(actual, tiny_model.denoise(seen.x, timesteps, seen.y))
    codes = [layer.rounded.codes for layer in quantized.layers[SITE].variants]
    assert not torch.equal(*codes)


def test_what_the_transform_leaves_alone_has_one_weight_and_attentions_one_grid(tiny_model):
    each = ChannelScaling(name="smooth", roles=["qkv"], alpha=0.5, statistic=Maximum())
    static = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())
    operands = ["q", "k", "v", "probs"]
    attention = UniformAttention(operands=operands, grid="asymmetric", probability_bits=8, range=MinMax())
    changes = {"activation": static, "attention": attention, "rounding": GPTQ()}
    quantized = fitted(tiny_model, transform=aware(each=each), **changes)
    timed = {name for name, layer in quantized.layers.items() if isinstance(layer, TimedLinear)}
    assert timed == {s.name for s in tiny_model.sites() if s.role == "qkv"}
    assert {name for name, layer in quantized.policy.items() if layer.bases == 2} == timed
    assert len(quantized.attention) == 2
    assert list(quantized.layers) == [name for name in quantized.policy if name in quantized.layers]
    assert output(tiny_model, quantized).isfinite().all()


@pytest.mark.parametrize("bits", [(4, 8), (16, 8)])
def test_saved_and_loaded_it_is_the_same(tiny_model, tmp_path, bits):
    quantized = fitted(tiny_model, bits=bits)
    checkpoint.save(quantized, tmp_path, checkpoint.provenance(tiny_model))
    loaded = checkpoint.load(tmp_path, tiny_model)
    assert torch.equal(output(tiny_model, loaded), output(tiny_model, quantized))
    assert loaded.policy == quantized.policy
    assert isinstance(loaded.rewrite, RewriteByRange)


def test_a_killed_fit_goes_on(tiny_model, tmp_path, monkeypatch):
    made = recipe(transform=aware(), rounding=GPTQ())
    expected = output(tiny_model, quantize(tiny_model, made, unequal_points, tmp_path))
    assert sorted(p.name for p in tmp_path.glob("range_*")) == ["range_0", "range_1"]
    (tmp_path / "range_1" / "block_001.safetensors").unlink()
    assert torch.equal(output(tiny_model, quantize(tiny_model, made, unequal_points, tmp_path)), expected)


def test_a_weight_is_counted_once_a_range(tiny_model):
    sites, denoiser = tiny_model.sites(), tiny_model.denoiser
    for bits in ((4, 8), (16, 8)):
        one, two = recipe(bits, transform=None), recipe(bits, transform=aware())
        policies = [each.completed(each.plan(sites), tiny_model) for each in (one, two)]
        left = two.run_time(tiny_model)
        costs = [ledger(denoiser, sites, p, (), at) for p, at in zip(policies, ([], left), strict=True)]
        chosen = [s for s in sites if s.name in policies[0]]
        weights = sum(weight_storage_bits(s, policies[0][s.name].weight) for s in chosen)
        factors = sum(2 * 16 * each.site.in_features for each in left)
        assert len(left) == 4 * 2
        assert abs(8 * (costs[1].model_bytes - costs[0].model_bytes) - weights - factors) < 16
        assert costs[1].weight_bits_used == costs[0].weight_bits_used
        if bits[0] == 4:
            assert costs[1].weight_bits_quantized == 2 * costs[0].weight_bits_quantized
    layer = policies[1][SITE]
    assert weight_text(layer).startswith("2 bases over time, ")
    assert "in 2 bases over time" in str(layer)


def test_a_policy_of_several_bases_is_saved_and_others_look_as_before(tiny_model, tmp_path):
    made = recipe(transform=aware())
    policy = made.completed(made.plan(tiny_model.sites()), tiny_model)
    policy.save(tmp_path / "policy.yaml")
    assert Policy.load(tmp_path / "policy.yaml") == policy
    assert "bases" not in LayerSpec(weight=None, activation=None).tree()


def test_the_mean_is_over_samples_whatever_their_batches():
    rows = torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    gathering = Mean().start(torch.ones(5))
    for part in rows.split(3):
        gathering.add(part, torch.zeros(len(part), dtype=torch.long))
    torch.testing.assert_close(gathering.value(), rows.mean(0))


def test_where_no_input_is_transformed_nothing_is(tiny_model):
    sites = [site for site in tiny_model.sites() if site.role not in BLOCKS]
    assert rewritten(aware(), tiny_model, sites, unequal_points, TRIAL, None).layers == {}


def test_a_chain_in_a_chain_has_the_bases_of_its_ranges():
    inner = Chain(name="inner", steps={"smooth": SMOOTH})
    assert aware(each=Chain(name="outer", steps={"inner": inner})).bases("qkv") == 2


def test_what_cannot_be_is_refused(tiny_model):
    with pytest.raises(UserError, match="TimestepAware.ranges=0; allowed: a whole number of at least 1"):
        aware(0)
    for each in (aware(), Hadamard(name="hadamard", roles=BLOCKS, block=None, seed=0)):
        with pytest.raises(UserError, match="transform.each must be a transform that takes something from data"):
            aware(each=each)
    with pytest.raises(UserError, match="transform.ranges=13, and the sampler has 12 steps"):
        aware(13).groups(unequal_points())
    few = replace(unequal_points(), visited=list(range(0, 1000, 10)))
    with pytest.raises(UserError, match="38 of 50 ranges of timesteps have no calibration points"):
        aware(50).groups(few)
    unknown = aware(each=ChannelScaling(name="smooth", roles=["mlp"], alpha=0.5, statistic=Maximum()))
    assert unknown.problems(tiny_model.sites())[0].startswith("transform.each.roles has 'mlp'")
    with pytest.raises(UserError, match=r"steps\.first changes with time and cannot be a step of a chain"):
        Chain(name="chain", steps={"first": aware()})  # type: ignore[dict-item]


def test_a_model_without_folds_is_the_same_otherwise(tiny_model):
    view = unabsorbing(tiny_model)
    assert view.folds() == []
    assert view.denoiser is tiny_model.denoiser
    assert view.clock is tiny_model.clock
    assert Scope(roles=BLOCKS).select(view.sites()) == Scope(roles=BLOCKS).select(tiny_model.sites())
