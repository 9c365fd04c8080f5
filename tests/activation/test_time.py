"""Groups of timesteps in a model: calibration, sampling, rounding and checkpoints see one time."""

from dataclasses import replace

import pytest
import torch
from helpers.timed import DOWN, UP, error, output, points, recipe, static
from torch import nn

from qdit.activation import DynamicActivation, EqualGroups, RangeGroups, SidedInputs
from qdit.activation.time import range_curve
from qdit.attention import (
    LogSqrt2Probabilities,
    ReleasedSumProbabilities,
    StaticAttention,
    TwoRegionProbabilities,
    UnsignedProbabilities,
)
from qdit.calibration import CalibrationData
from qdit.calibration.observers import input_values
from qdit.checkpoint import checkpoint
from qdit.errors import UserError
from qdit.ledger import activation_storage_bits, ledger
from qdit.method import quantize
from qdit.model.base import OPERANDS
from qdit.nn.clock import Clock
from qdit.nn.quantizers import BookQuantizer, StaticQuantizer, quantizer_of
from qdit.policies import Policy
from qdit.quant.affine import affine
from qdit.quant.grid import fake_quantize
from qdit.quant.ranges import MSE, MinMax
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import ALL, Groups
from qdit.rounding import GPTQ, AdaRound

PROBS = "transformer_blocks.1.attn1.processor"


def attend(probabilities=None, **changes):
    given = {"operands": list(OPERANDS), "granularity": "head", "grid": "symmetric_full", "range": MinMax()}
    return StaticAttention(**given | {"probabilities": probabilities or TwoRegionProbabilities()} | changes)


@pytest.mark.parametrize("grid", ["asymmetric", "asymmetric_free", "symmetric", "symmetric_full", "unsigned"])
def test_golden_5_grids_by_group_give_the_bits_of_one_grid(grid):
    x = torch.randn(6, 5, 4).abs()
    spec = QuantSpec(bits=6, granularity="tensor", grid=grid, dynamic=False)
    one = affine(x.amin().view(1, 1), x.amax().view(1, 1), spec)
    clock = Clock()
    expected = fake_quantize(x, spec, one)
    assert isinstance(quantizer_of(spec, [one], ALL, clock), StaticQuantizer)
    grouped = quantizer_of(spec, [one, one, one], Groups((200, 400)), clock)
    assert isinstance(grouped, BookQuantizer)
    with clock.showing(torch.tensor([0, 999, 200, 199, 400, 300])):
        assert torch.equal(grouped(x), expected)
    with pytest.raises(RuntimeError, match="depends on time"):
        grouped(x)
    halves = quantizer_of(spec, [one, replace(one, scale=one.scale / 2)], Groups((500,)), clock)
    with clock.showing(torch.tensor([499, 500, 0, 999, 10, 990])):
        found = halves(x)
    assert torch.equal(found[::2], expected[::2])
    half = fake_quantize(x, spec, replace(one, scale=one.scale / 2))
    assert torch.equal(found[1::2], half[1::2])
    with clock.showing(torch.tensor([700])):  # the sampler's batches have one time
        assert torch.equal(halves(x), half)


@pytest.mark.parametrize("kind", [EqualGroups, RangeGroups])
def test_golden_5_one_group_is_the_static_result_bit_for_bit(kind, tiny_model):
    plain = quantize(tiny_model, recipe(static(), attend()), points)
    one = quantize(tiny_model, recipe(static(time=kind(groups=1)), attend()), points)
    assert one.policy == plain.policy
    assert torch.equal(output(tiny_model, one), output(tiny_model, plain))


@pytest.mark.parametrize("kind", [EqualGroups, RangeGroups])
def test_golden_5_each_group_has_the_range_of_its_own_points(kind, tiny_model):
    quantized = quantize(tiny_model, recipe(static(time=kind(groups=4))), points)
    quantizer = quantized.layers[DOWN].quantizer
    assert kind is RangeGroups or quantizer.edges.tolist() == [250, 500, 750]
    site = next(s for s in tiny_model.sites() if s.name == DOWN)
    data, groups = points(), Groups(tuple(quantizer.edges.tolist()))
    numbers = groups.of(data.t)
    for group in range(4):
        own = CalibrationData(*(part[numbers == group] for part in (data.x, data.t, data.y)), batch_size=3)
        (values,) = input_values(tiny_model, [site], own)[DOWN]
        expected = affine(values.amin().view(1, 1), values.amax().view(1, 1), quantizer.spec)
        torch.testing.assert_close(quantizer.numbers[group, 0, 0], expected.scale.squeeze())
    assert quantized.policy[DOWN].activation.time_groups == 4


def test_own_ranges_are_better_where_ranges_change(tiny_model):
    one = quantize(tiny_model, recipe(static(), bits=(16, 4)), points)
    own = quantize(tiny_model, recipe(static(time=EqualGroups(groups=8)), bits=(16, 4)), points)
    assert error(tiny_model, own, points()) < error(tiny_model, one, points())


def test_batches_of_mixed_times_are_their_samples_one_by_one(tiny_model):
    part = recipe(static(time=EqualGroups(groups=4)), attend())
    quantized, data = quantize(tiny_model, part, points), points(1)
    together = output(tiny_model, quantized)
    one = [CalibrationData(*(v[i : i + 1] for v in (data.x, data.t, data.y)), batch_size=1) for i in range(8)]
    alone = torch.cat([output(tiny_model, quantized, each) for each in one])
    assert ((together - alone).abs() < 1e-3).float().mean() > 0.98
    assert tiny_model.clock.timesteps is None


def test_where_names_what_is_grouped(tiny_model):
    paper = quantize(tiny_model, recipe(static(time=EqualGroups(groups=2)), attend()), points)
    code = quantize(tiny_model, recipe(static(time=EqualGroups(groups=2, where=["probs"])), attend()), points)
    grouped = {name for name, layer in code.policy.items() if layer.activation.time_groups}
    assert grouped == {site for a in tiny_model.attentions() for o, site in a.sites.items() if o == "probs"}
    assert all(layer.activation.time_groups == 2 for layer in paper.policy.values())
    assert isinstance(code.layers[DOWN].quantizer, StaticQuantizer)
    assert code.attention[PROBS].probs.numbers.shape == (2, 1, 3)
    assert paper.attention[PROBS].q.numbers.shape == (2, 2, 2)
    assert code.attention[PROBS].q.numbers.shape == (1, 2, 2)


def test_the_curve_of_ranges_and_its_gaps(tiny_model):
    sites = [s for s in tiny_model.sites() if s.name in (UP, DOWN)]
    data = points()
    curve = range_curve(tiny_model, sites, data)
    assert curve.shape == (8, 2)
    fewer = CalibrationData(data.x[::2], data.t[::2], data.y[::2], 3, visited=data.visited)
    partial = range_curve(tiny_model, sites, fewer)
    torch.testing.assert_close(partial[1::2], curve[1::2])
    torch.testing.assert_close(partial[2], (curve[1] + curve[3]) / 2)


def test_problems_are_named(tiny_model):
    with pytest.raises(UserError, match=r"groups=9, and the sampler has 8 steps"):
        quantize(tiny_model, recipe(static(time=EqualGroups(groups=9))), points)
    few = CalibrationData(
        *(part[:2] for part in vars(points()).values() if isinstance(part, torch.Tensor)), batch_size=2
    )
    few = replace(few, visited=points().visited)
    with pytest.raises(UserError, match=r"3 of 4 groups of timesteps have no calibration points"):
        quantize(tiny_model, recipe(static(time=EqualGroups(groups=4))), lambda: few)
    for bad, message in (
        ({"groups": 0}, "at least 1"),
        ({"where": ["keys"]}, "where=.*; allowed: a list of inputs"),
    ):
        with pytest.raises(UserError, match=message):
            EqualGroups(**bad)
    with pytest.raises(UserError, match="negative=0"):
        SidedInputs(negative=0)
    with pytest.raises(UserError, match="kinds"):
        TwoRegionProbabilities(kinds=[])
    with pytest.raises(UserError, match="splits=0"):
        ReleasedSumProbabilities(splits=0)
    with pytest.raises(UserError, match="shares"):
        LogSqrt2Probabilities(shares=[0.3])


@pytest.mark.parametrize(
    "probabilities",
    [
        TwoRegionProbabilities(),
        TwoRegionProbabilities(top="saturated", kinds=["two_region"]),
        LogSqrt2Probabilities(),
        UnsignedProbabilities(range=MinMax()),
    ],
    ids=lambda p: f"{p.grid}{getattr(p, 'top', '')}",
)
def test_probabilities_of_eight_bits_are_close(probabilities, tiny_model):
    only = attend(probabilities, operands=["probs"])
    quantized = quantize(tiny_model, recipe(DynamicActivation(granularity="row", grid="asymmetric"), only), points)
    full = quantize(tiny_model, recipe(DynamicActivation(granularity="row", grid="asymmetric")), points)
    difference = (output(tiny_model, quantized) - output(tiny_model, full)).square().mean()
    assert 0 < difference < 0.01 * output(tiny_model).square().mean()
    assert quantized.policy["transformer_blocks.1.attn1.probs"].activation.grid == probabilities.grid


def test_golden_3_the_released_sum_is_the_worse_one(tiny_model):
    def with_probabilities(part):
        activation = DynamicActivation(granularity="row", grid="asymmetric")
        quantized = quantize(tiny_model, recipe(activation, attend(part, operands=["probs"])), points)
        probs = torch.randn(8, 2, 16, 16, generator=torch.Generator().manual_seed(0)).softmax(-1)
        return (quantized.attention[PROBS].probs(probs) - probs).square().mean()

    assert with_probabilities(TwoRegionProbabilities()) < with_probabilities(ReleasedSumProbabilities())


def test_each_head_has_a_grid_of_its_own(tiny_model):
    quantized = quantize(tiny_model, recipe(static(), attend(range=MSE())), points)
    keys = quantized.attention[PROBS].k
    assert keys.numbers.shape == (1, 2, 2)
    assert keys.numbers[0, 0, 0] != keys.numbers[0, 1, 0]
    x = torch.randn(3, 2, 16, 16)
    for head in range(2):
        scale, zero = keys.numbers[0, head]
        expected = ((x[:, head] / scale).round() + zero).clamp(0, 255).sub(zero) * scale
        torch.testing.assert_close(keys(x)[:, head], expected)


def test_the_ledger_counts_grids_of_heads_groups_and_sides(tiny_model):
    spec = QuantSpec(bits=8, granularity="tensor", grid="two_sided", dynamic=False, time_groups=5)
    assert activation_storage_bits(spec) == 5 * 2 * 16
    head = QuantSpec(bits=8, granularity="head", grid="symmetric_full", dynamic=False)
    assert activation_storage_bits(head, heads=3) == 3 * 16
    policy = quantize(tiny_model, recipe(static(time=EqualGroups(groups=2)), attend()), points).policy
    costs = ledger(tiny_model.denoiser, tiny_model.sites(), policy, tiny_model.attentions())
    without = Policy({k: replace(v, activation=None) for k, v in policy.items() if v.weight})
    plain = ledger(tiny_model.denoiser, tiny_model.sites(), without, tiny_model.attentions())
    inputs, operands = 12 * 2 * (16 + 8), 2 * 2 * (3 * 2 * 16 + 2 * 16)
    assert costs.model_bytes - plain.model_bytes == pytest.approx((inputs + operands) / 8, abs=1)


@pytest.mark.parametrize(
    "rounding", [GPTQ(), GPTQ(order="sequential"), AdaRound(iterations=3)], ids=["gptq", "true", "ada"]
)
def test_roundings_that_run_blocks_by_themselves_show_the_time(rounding, tiny_model):
    activation = static(time=EqualGroups(groups=4), regions=SidedInputs(roles=["ffn_down"]))
    quantized = quantize(tiny_model, recipe(activation, attend(), rounding=rounding), points)
    assert error(tiny_model, quantized) < 0.05 * output(tiny_model).square().mean()


def test_checkpoints_keep_groups_and_read_the_models_clock(tiny_model, tmp_path):
    activation = static(time=EqualGroups(groups=4), regions=SidedInputs(roles=["ffn_down"]))
    quantized = quantize(tiny_model, recipe(activation, attend()), points)
    expected = output(tiny_model, quantized)
    checkpoint.save(quantized, tmp_path, checkpoint.provenance(tiny_model))
    loaded = checkpoint.load(tmp_path, tiny_model)
    assert torch.equal(output(tiny_model, loaded), expected)
    assert loaded.layers[DOWN].quantizer.clock is tiny_model.clock
    assert loaded.policy == quantized.policy


def test_full_precision_is_back(tiny_model):
    before = output(tiny_model)
    modules = dict(tiny_model.denoiser.named_modules())
    quantized = quantize(tiny_model, recipe(static(time=EqualGroups(groups=4)), attend()), points)
    output(tiny_model, quantized)
    assert torch.equal(output(tiny_model), before)
    assert dict(tiny_model.denoiser.named_modules()) == modules
    assert all(isinstance(m, nn.Module) for m in modules.values())
