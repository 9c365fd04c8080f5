"""Mixed precision on a tiny model: what is measured, resumed, shared, within budgets, deployed and used again."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.configs import config

from qdit.activation import DynamicActivation
from qdit.checkpoint import checkpoint
from qdit.errors import UserError
from qdit.eval.paired import SQNR, SSIM, LatentMSE
from qdit.ledger import ledger, weight_storage_bits
from qdit.method import quantize
from qdit.model.base import Site
from qdit.nn.clock import Clock
from qdit.nn.switch import Now, TimedLinear
from qdit.plots.run import bit_map
from qdit.policies import LayerSpec, Policy, Span
from qdit.quant.ranges import MinMax
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import Groups
from qdit.repair import BiasRepair
from qdit.rounding import GPTQ
from qdit.runs.parts import build_recipe
from qdit.sampler.ddim import DDIM
from qdit.search import Fixed, MixedPrecision, metric_groups
from qdit.search.allocate import MILP, Greedy
from qdit.search.bit_budget import BitBitOps, BitBytes, MeanBits, Rest
from qdit.search.bit_space import Ranges
from qdit.search.budget import MeanGroup
from qdit.search.metric_groups import MetricGroup, partition
from qdit.search.sensitivity import Meter, Paired
from qdit.search.space import Gene
from qdit.search.split import ByError, ByRatio, Even
from qdit.search.variants import BitVariants
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]
SAMPLER = DDIM(name="ddim", steps=4, guidance=1.0, guided_channels=None, eta=0.0, spacing="leading")
WIDTHS = [2, 4, 8]


@pytest.fixture
def recipe(parts):
    """ViDiT-Q's grids: weights by row, symmetric inputs by token."""

    def make(**changes):
        grids = {
            "weight": WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
            "activation": DynamicActivation(granularity="row", grid="symmetric"),
        }
        return parts.recipe(**grids | changes)

    return make


def search(**changes) -> MixedPrecision:
    given = {
        "widths": WIDTHS,
        "ranges": 2,
        "groups": {"quality": MetricGroup(metric=LatentMSE(), roles=BLOCKS)},
        "samples": Paired(num_samples=3, batch_size=2),
        "budget": MeanBits(at_most=5.0),
        "allocator": MILP(),
        "split": Even(),
    }
    return MixedPrecision(**given | changes)


def setting(parts, **changes):
    return parts.setting(**{"sampler": SAMPLER} | changes)


def refuse(*_, **__):
    raise AssertionError("nothing may be sampled")


def output(model, quantized):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 4, 8, 8, generator=generator)
    with torch.no_grad(), quantized.installed(model):
        return model.denoise(x, torch.tensor([999, 740, 260, 5]), torch.tensor([1, 10, 3, 2]))


def test_a_timed_layer_is_its_variant_of_the_time():
    clock = Clock()
    now = Now(clock, Groups((250, 500)))
    variants = [torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)]
    layer, x = TimedLinear(variants, (1, 0, 1), now), torch.randn(4, 5, 3)
    for t, number in ((0, 1), (249, 1), (250, 0), (499, 0), (500, 1), (999, 1)):
        with clock.showing(torch.full((4,), t)):
            assert torch.equal(layer(x), variants[number](x))
    with clock.showing(torch.tensor([300, 0, 600, 400])):  # samples of one batch at different times
        mixed = layer(x)
    for row, number in enumerate((0, 1, 1, 0)):
        torch.testing.assert_close(mixed[row], variants[number](x[row]))
    with pytest.raises(RuntimeError, match="outside of the network"):
        layer(x)


def test_policies_over_time_are_plain_values(tmp_path):
    specs = [QuantSpec(bits=8), QuantSpec(bits=4)]
    spans = tuple(Span(first=9 - n, last=8 - n, steps=n + 1, weight=spec) for n, spec in enumerate(specs))
    policy = Policy({"a": LayerSpec(weight=specs[1], activation=None, spans=spans)})
    policy["b"] = LayerSpec(weight=specs[0], activation=specs[0])
    policy.save(tmp_path / "policy.yaml")
    assert Policy.load(tmp_path / "policy.yaml") == policy
    assert policy["a"].weight_bits == pytest.approx((8 + 2 * 4) / 3)
    assert policy["a"].weights == specs
    assert policy["b"].weights == specs[:1]
    assert "8, 4 bits over time" in str(policy["a"])
    (tmp_path / "policy.yaml").write_text("policy: {a: {weight: null, activation: null, spans: [{first: 1}]}}")
    with pytest.raises(UserError, match="not a policy file"):
        Policy.load(tmp_path / "policy.yaml")


@pytest.fixture(params=["nearest", "gptq"])
def rounding(request, parts):
    return parts.recipe().rounding if request.param == "nearest" else GPTQ()


def test_no_9_eight_bits_everywhere_are_w8a8(parts, recipe, tiny_model, rounding):
    made = recipe(rounding=rounding, search=search(budget=MeanBits(at_most=8.0), widths=[8]))
    found = quantize(tiny_model, made, parts.data, None, setting(parts))
    plain = quantize(tiny_model, recipe(rounding=rounding, weight_bits=8), parts.data)
    assert found.policy == plain.policy
    assert torch.equal(output(tiny_model, found), output(tiny_model, plain))


def test_five_mean_bits_change_the_weights_that_the_policy_names(parts, recipe, tiny_model, rounding, tmp_path):
    found = quantize(tiny_model, recipe(rounding=rounding, search=search()), parts.data, None, setting(parts))
    fits = {b: quantize(tiny_model, recipe(rounding=rounding, weight_bits=b), parts.data) for b in WIDTHS}
    changing = 0
    for name, spec in found.policy.items():
        layer = found.layers[name]
        if not spec.spans:
            assert torch.equal(layer.weight, fits[spec.weight.bits].layers[name].weight)
            continue
        changing += 1
        for t in (999, 750, 500, 250, 0):
            (span,) = [s for s in spec.spans if s.last <= t][:1] or spec.spans[-1:]
            variant = layer.variants[layer.order[int(layer.now.groups.of(torch.tensor([t]))[0])]]
            assert torch.equal(variant.weight, fits[span.weight.bits].layers[name].weight)
            assert variant.rounded.spec.bits == span.weight.bits
    assert changing
    details = found.allocation.details
    assert details["mean_bits"] <= 5
    assert details["mean_bits"] == pytest.approx(4.9, abs=0.2)
    assert json.loads(json.dumps(details, allow_nan=False)) == details
    assert bit_map(details["bits"], tmp_path / "bits.png").stat().st_size > 1000
    assert not any(torch.equal(output(tiny_model, found), output(tiny_model, other)) for other in fits.values())


def costs(model, quantized):
    return ledger(model.denoiser, model.sites(), quantized.policy, model.attentions())


@pytest.mark.parametrize("allocator", [MILP(), Greedy()], ids=["milp", "greedy"])
def test_no_budget_is_exceeded_over_the_whole_model_too(parts, recipe, tiny_model, tmp_path, allocator):
    """As the ledger of the deployed policy counts it."""
    plain = costs(tiny_model, quantize(tiny_model, recipe(weight_bits=4), parts.data))
    budgets = {
        "weight_bits_used": (MeanBits(at_most=4.4), 4.4),
        "model_bytes": (BitBytes(at_most=plain.model_bytes * 1.05e-6, over="model"), plain.model_bytes * 1.05),
        "bops": (BitBitOps(at_most=plain.bops * 1.05e-9, over="model"), plain.bops * 1.05),
    }
    for key, (budget, limit) in budgets.items():
        made = recipe(search=search(budget=budget, allocator=allocator))
        found = costs(tiny_model, quantize(tiny_model, made, parts.data, tmp_path, setting(parts)))
        assert 0.9 * limit < getattr(found, key) <= limit


def test_mean_bits_of_a_model_that_keeps_its_bits(parts, recipe, tiny_model):
    """The budget counts what a step uses and the ledger all that is kept: with one range these are the same."""
    budget = MeanBits(at_most=11.1, over="model", counted="storage")
    made = recipe(search=search(budget=budget, ranges=1))
    found = costs(tiny_model, quantize(tiny_model, made, parts.data, None, setting(parts)))
    assert 10.9 < found.weight_bits_model <= 11.1


def test_sensitivities_are_those_of_sampling_from_the_start(parts, recipe, tiny_model):
    """What is played back changes nothing: a site alone, in the second range, against plain sampling."""
    found = quantize(tiny_model, recipe(search=search()), parts.data, None, setting(parts))
    entry = found.allocation.details["bits"][1]
    variants = BitVariants(tiny_model, recipe(), parts.data)
    ranges = Ranges.of(SAMPLER.timesteps(tiny_model), 2)
    layer = TimedLinear(
        [tiny_model.denoiser.get_submodule(entry["site"]), variants.at(2).layers[entry["site"]]],
        (1, 0),
        Now(tiny_model.clock, ranges.groups),
    )
    alone = replace(variants.at(2), layers={entry["site"]: layer}, attention={})
    drawn = []
    indices = [30_000_000, 30_000_001, 30_000_002]
    labels = parts.setting().dataset.labels(indices, 0)
    for quantized in (None, alone):
        if quantized is None:
            drawn.append(SAMPLER.sample(tiny_model, indices, labels, 0))
        else:
            with quantized.installed(tiny_model):
                drawn.append(SAMPLER.sample(tiny_model, indices, labels, 0))
    error = (drawn[0] - drawn[1]).double().square().flatten(1).mean(1)
    assert entry["loss"]["2"][1] == pytest.approx(float(error.mean()), rel=1e-4)
    assert entry["stderr"]["2"][1] == pytest.approx(float(error.std() / 3**0.5), rel=1e-4)
    assert entry["loss"]["2"][0] > entry["loss"]["8"][0]


def test_a_kill_while_measuring_changes_nothing(parts, recipe, tiny_model, tmp_path, monkeypatch):
    made = recipe(search=search())
    whole = quantize(tiny_model, made, parts.data, tmp_path / "whole", setting(parts))
    (journal,) = (tmp_path / "whole").rglob("*.jsonl")

    draw, calls = Meter.draw, itertools.count()

    def killed(self, first=0):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return draw(self, first)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            quantize(tiny_model, made, parts.data, tmp_path / "torn", setting(parts))
    (torn,) = (tmp_path / "torn").rglob("*.jsonl")
    assert len(torn.read_bytes().splitlines()) == 1 + 6
    with torn.open("ab") as stream:
        stream.write(b'{"what": "half a li')
    again = quantize(tiny_model, made, parts.data, tmp_path / "torn", setting(parts))
    assert again.policy == whole.policy
    assert again.allocation == whole.allocation
    assert torch.equal(output(tiny_model, again), output(tiny_model, whole))

    def lines(path):
        timed = ("seconds", "check")  # a check is of the whole line
        return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in path.open()]

    assert lines(torn) == lines(journal)


def test_an_attention_comes_from_the_fit_of_its_own_queries(recipe, tiny_model):
    """Rounding may have learned its steps beside these weights."""
    variants, attentions = BitVariants(tiny_model, recipe(), parts_are_not_collected), tiny_model.attentions()
    fits = {bits: SimpleNamespace(attention={a.processor: (bits, a.name) for a in attentions}) for bits in WIDTHS}
    sites = [site.name for site in tiny_model.sites()]
    first, *others = [a.name for a in attentions]
    chosen = {name: fits[4] for name in sites} | {f"{first}.to_q": fits[8], f"{first}.to_v": fits[2]}
    found = variants.attention(chosen)
    assert found[f"{first}.processor"] == (8, first)
    assert all(found[f"{name}.processor"] == (4, name) for name in others)
    del chosen[f"{first}.to_q"]
    assert variants.attention(chosen)[f"{first}.processor"] in ((4, first), (2, first))
    alone = {name: fits[2] for name in sites if "ff" in name}
    assert variants.attention(alone)[f"{first}.processor"] == (2, first)


def parts_are_not_collected():
    raise AssertionError("no data are needed")


def test_layers_that_are_repaired_are_measured_for_themselves(parts, recipe, tiny_model, tmp_path):
    plain = recipe(search=search())
    quantize(tiny_model, plain, parts.data, tmp_path, setting(parts))
    quantize(tiny_model, replace(plain, repair=BiasRepair()), parts.data, tmp_path, setting(parts))
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2


def test_all_budgets_share_one_measurement(parts, recipe, tiny_model, tmp_path, monkeypatch):
    first = quantize(tiny_model, recipe(search=search()), parts.data, tmp_path, setting(parts))
    monkeypatch.setattr(Meter, "draw", refuse)
    policies = [first.policy]
    for changes in (
        {"budget": MeanBits(at_most=3.0)},
        {"budget": BitBytes(uniform=5)},
        {"budget": BitBitOps(uniform=3)},
        {"budget": MeanBits(at_most=3.0), "allocator": Greedy()},
        {"split": ByError()},  # one group: nothing to split
        {"widths": [4, 8]},
    ):
        made = recipe(search=search(**changes))
        policies.append(quantize(tiny_model, made, parts.data, tmp_path, setting(parts)).policy)
    assert len({str(policy.tree()) for policy in policies}) > 3
    other = recipe(search=search(samples=Paired(num_samples=3, batch_size=2, seed=1)))
    with pytest.raises(AssertionError, match="nothing may be sampled"):
        quantize(tiny_model, other, parts.data, tmp_path, setting(parts))


@pytest.mark.parametrize("split", [ByError(), ByRatio(ratios=[0.7, 1.3])], ids=["by_error", "by_ratio"])
def test_groups_have_their_own_metrics_and_share_the_budget(parts, recipe, tiny_model, tmp_path, split, monkeypatch):
    groups = {
        "content": MetricGroup(metric=SSIM(), roles=["ffn_up"], sites=["*.1.ff.net.2"]),
        "quality": MetricGroup(metric=SQNR(), roles=BLOCKS),
    }
    made = recipe(search=search(groups=groups, split=split))
    found = quantize(tiny_model, made, parts.data, tmp_path, setting(parts))
    bits = found.allocation.details["bits"]
    content = [row["site"] for row in bits if row["group"] == "content"]
    assert content == [f"transformer_blocks.{n}" for n in ("0.ff.net.0.proj", "1.ff.net.0.proj", "1.ff.net.2")]
    assert found.allocation.details["mean_bits"] <= 5
    (journal,) = tmp_path.rglob("*.jsonl")
    metrics = {json.loads(line)["metric"].split("(")[0] for line in journal.read_text().splitlines()[1:]}
    assert metrics == {"SSIM", "SQNR", "LatentMSE"}
    monkeypatch.setattr(Meter, "draw", refuse)
    assert quantize(tiny_model, made, parts.data, tmp_path, setting(parts)).policy == found.policy


def test_what_was_found_is_saved_loaded_and_taken_up_from_its_policy(parts, recipe, tiny_model, tmp_path):
    given = {"rounding": GPTQ()}
    found = quantize(tiny_model, recipe(**given, search=search()), parts.data, None, setting(parts))
    assert any(spec.spans for spec in found.policy.values())
    checkpoint.save(found, tmp_path / "saved", checkpoint.provenance(tiny_model))
    loaded = checkpoint.load(tmp_path / "saved", tiny_model)
    assert loaded.policy == found.policy
    assert torch.equal(output(tiny_model, loaded), output(tiny_model, found))
    stored = (tmp_path / "saved" / "quantized.safetensors").stat().st_size
    plain = quantize(tiny_model, recipe(**given, weight_bits=8), parts.data)
    checkpoint.save(plain, tmp_path / "plain", checkpoint.provenance(tiny_model))
    assert stored < 2 * (tmp_path / "plain" / "quantized.safetensors").stat().st_size  # codes, not floats

    found.policy.save(tmp_path / "policy.yaml")
    fixed = Fixed(budget=MeanGroup(), policy=str(tmp_path / "policy.yaml"))
    assert fixed.plan(recipe(**given), tiny_model.sites()) == found.policy
    again = quantize(tiny_model, recipe(**given, search=fixed), parts.data, None, setting(parts))
    assert again.policy == found.policy
    assert torch.equal(output(tiny_model, again), output(tiny_model, found))
    other = recipe(**given, search=fixed, activation_bits=4)
    assert "this recipe makes" in fixed.problems(other, tiny_model.sites())[0]


def test_a_role_that_no_group_has_goes_with_the_one_that_it_is_like():
    roles = ["cross_out", "attn_out", "modulation", "text_up"]
    genes = [Gene((Site(f"site.{role}", role, 0, 8, 8, 4, 0),), ()) for role in roles]
    quality, words = (MetricGroup(metric=LatentMSE(), roles=own) for own in (["attn_out", "adaln"], ["cross_out"]))
    assert partition({"quality": quality, "words": words}, genes) == {"quality": [1, 2], "words": [0]}


def test_needs_are_named(parts, recipe, tiny_model):
    sites = tiny_model.sites()
    groups = {"quality": MetricGroup(metric=LatentMSE(), roles=["qkv", "querys"])}
    first, second = search(groups=groups).problems(recipe(), sites)
    assert "roles querys" in first
    assert "no metric for transformer_blocks.0.attn1.to_out.0 and others" in second
    assert "cannot be met" in search(budget=MeanBits(at_most=1.0)).problems(recipe(), sites)[0]
    odd = recipe(weight=WeightGrid(granularity="group", group_size=24, grid="asymmetric", range=MinMax()))
    assert "group_size=24 does not divide" in search().problems(odd, sites)[0]
    with pytest.raises(UserError, match=r"widths=.4, 9.; allowed: .* each a whole number .2 to 8, or 16"):
        search(widths=[4, 9])
    with pytest.raises(UserError, match="num_samples=1; .* from 2 to 10,000,000 .a standard error needs two"):
        Paired(num_samples=1)
    with pytest.raises(UserError, match="the sampler has 4 steps"):
        quantize(tiny_model, recipe(search=search(ranges=5)), parts.data, None, setting(parts))
    assert "16 sensitivities" in search(widths=[4], ranges=2).summary(recipe(), sites)
    assert Rest.least(sites, recipe()).numel < Rest.of(tiny_model, recipe()).numel


def test_widths_that_a_format_does_not_have_are_refused_and_priced(parts, recipe, tiny_model):
    """Floating-point grids are another format at each width, and a role's own grid has no zero point to pay for."""
    sites = tiny_model.sites()
    floats = recipe(weight=WeightGrid(granularity="row", grid="float", range=MinMax()))
    assert search(widths=[4, 6, 8], budget=BitBytes(uniform=6)).problems(floats, sites) == []
    assert search(widths=[6, 8], budget=BitBytes(uniform=4, at_most=1e6)).problems(floats, sites) == []
    low = search(widths=[6, 8], budget=BitBitOps(uniform=4)).problems(floats, sites)
    assert low[0].startswith("search.budget cannot be met")
    assert search(widths=[4, 8], budget=BitBytes(uniform=5)).problems(floats, sites) == [
        "search.budget.uniform=5: grid=float has 4, 6, 8 bits, not 5; name a format, such as e2m1"
    ]
    two, three = search(widths=[2, 3, 4]).problems(floats, sites)
    assert two.startswith("search.widths: grid=float has 4, 6, 8 bits, not 2")
    assert "not 3" in three
    named = recipe(weight=floats.weight.in_format("nvfp4"), weight_format="nvfp4")
    (found,) = search(widths=[4, 8]).problems(named, sites)
    assert "bits.weight_format=nvfp4 has 4 bits, not 8; use search=none" in found
    own = recipe(weight=WeightGrid(granularity="row", grid="asymmetric", range=MinMax(), by_role={"ffn_up": "e3m0"}))
    space, budget = search().space(own, sites), MeanBits(counted="storage")
    for gene in space.genes:
        spent = sum(weight_storage_bits(s, own.particular(own.layer, s).weight) for s in gene.sites)
        assert budget.price(space, gene, 4) == spent


def test_a_group_may_offer_fewer_bits(parts, recipe, tiny_model, tmp_path):
    """MixDQ's release gives 2 bits to content alone."""
    groups = {
        "content": MetricGroup(metric=SQNR(), roles=["ffn_up", "ffn_down"]),
        "quality": MetricGroup(metric=SQNR(), roles=BLOCKS, widths=[4, 8]),
    }
    made = recipe(search=search(groups=groups, split=ByRatio(), budget=MeanBits(at_most=4.0)))
    found = quantize(tiny_model, made, parts.data, tmp_path, setting(parts))
    rows = found.allocation.details["bits"]
    assert {bits for row in rows if row["group"] == "quality" for bits in row["bits"]} <= {4, 8}
    assert {bits for row in rows if row["group"] == "content" for bits in row["bits"]} <= {2, 4, 8}
    assert {key for row in rows if row["group"] == "quality" for key in row["loss"]} == {"4", "8"}
    assert "4 bits in range" in (text := next(tmp_path.rglob("*.jsonl")).read_text())
    assert not [line for line in text.splitlines() if "attn1" in line and "at 2 bits" in line]  # not even measured
    for wrong in ([], [3]):
        bad = {"quality": MetricGroup(metric=SQNR(), roles=BLOCKS, widths=wrong)}
        with pytest.raises(UserError, match=r"search.groups.quality.widths=.*some of search.widths="):
            quantize(tiny_model, recipe(search=search(groups=bad)), parts.data, tmp_path, setting(parts))


@pytest.mark.parametrize("bits", ["w8a8", "w6a6", "w4a8", "w4a4"])
def test_mixdq_offers_no_quality_site_less_than_4_bits(bits, tiny_model):
    made = build_recipe(config("quantizer=mixdq", f"bits={bits}"))
    space = made.search.space(made, tiny_model.sites())
    quality = metric_groups.partition(made.search.groups, space.genes)["quality"]
    assert quality
    assert {size for number in quality for size in space.genes[number].sizes} == {4, 8}
    assert made.problems(tiny_model.sites()) == []
