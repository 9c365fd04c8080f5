"""The search of attentions' operands: against naive loops, its weights, and as a step of a fit."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers.text_models import load, points

from qdit.activation import EqualGroups, StaticActivation
from qdit.attention import (
    Log2Probabilities,
    LogSqrt2Probabilities,
    ReleasedSumProbabilities,
    StaticAttention,
    TwoRegionProbabilities,
    UnsignedProbabilities,
)
from qdit.calibration import CalibrationData
from qdit.hessian import Hessian, LegacyKL, Probe, products
from qdit.hessian.grids import multiples
from qdit.hessian.importance import Importance, output_importances
from qdit.hessian.operands import Side, alternate, chosen_points, output_weights, score_weights
from qdit.hessian.products import Moving, Other, best, shortlist
from qdit.method import Method, quantize
from qdit.nn.clock import Clock
from qdit.nn.quantizers import BookQuantizer
from qdit.quant.books import Uniform
from qdit.quant.ranges import MinMax
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import ALL, Groups
from qdit.rounding import GPTQ, Nearest
from qdit.scope import Scope
from qdit.weight import WeightGrid

RULE = Hessian(target=Probe(), candidates=30)
SPEC = QuantSpec(bits=4, granularity="head", grid="symmetric_full", dynamic=False)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def side(values, cells):
    """An operand [items, rows, inner] with 4 bits, a grid a cell."""
    numbers = torch.stack([values[cells == cell].abs().max() / 7.5 for cell in range(int(cells.max()) + 1)])
    numbers = torch.stack([numbers, torch.full_like(numbers, 8.0)], 1)
    module = BookQuantizer(SPEC, Uniform(0, 15), numbers.unsqueeze(0), ALL, Clock())
    return Side(values, module, cells, multiples(numbers, 0, RULE.factors()))


def score(left, right, weights, cell):
    """By its definition, float64."""
    rounded = [part.moving.rounded(part.numbers.unsqueeze(0))[:, 0].double() for part in (left, right)]
    error = left.values.double() @ right.values.double().mT - rounded[0] @ rounded[1].mT
    return float((weights.double() * error.square())[left.cells == cell].sum())


def naive(part, other, weights, cell, flipped=False):
    """One candidate at a time."""
    before, errors = part.numbers, []
    for numbers in part.tried:
        part.numbers = numbers
        errors.append(score(*((other, part) if flipped else (part, other)), weights, cell))
    part.numbers = before
    return part.tried[torch.tensor(errors).argmin(), cell]


@pytest.fixture
def product():
    """Three points of two heads, 5 and 6 rows of 8 channels."""
    cells = torch.arange(6) % 2
    left, right = draw(6, 5, 8), draw(6, 6, 8, seed=1) * (1 + cells).view(-1, 1, 1)
    return side(left, cells), side(right, cells), draw(6, 5, 6, seed=2).square()


def test_both_operands_get_the_naive_loops_numbers(product):
    left, right, weights = product
    expected = [naive(left, right, weights, cell) for cell in range(2)]
    assert left.search(right, weights)
    assert torch.equal(left.numbers, torch.stack(expected))
    expected = [naive(right, left, weights, cell, flipped=True) for cell in range(2)]
    assert right.search(left, weights.mT)
    assert torch.equal(right.numbers, torch.stack(expected))


@pytest.mark.parametrize("chunk", [1, 300, 2**20])
def test_chunks_do_not_matter(product, chunk, monkeypatch):
    left, right, weights = product
    monkeypatch.setattr(products, "CHUNK_VALUES", {"cpu": chunk})
    expected = [naive(left, right, weights, cell) for cell in range(2)]
    left.search(right, weights)
    assert torch.equal(left.numbers, torch.stack(expected))


def test_rounds_never_raise_the_score_and_end_when_nothing_moves(product):
    left, right, weights = product
    path = [sum(score(left, right, weights, cell) for cell in range(2))]
    for _ in range(4):
        alternate(left, right, weights, 1)
        path.append(sum(score(left, right, weights, cell) for cell in range(2)))
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(path))
    assert path[-1] < 0.95 * path[0]


def test_ties_keep_the_original(product):
    left, right, weights = product
    before = left.numbers, right.numbers
    alternate(left, right, torch.zeros_like(weights), 3)
    assert torch.equal(left.numbers, before[0])
    assert torch.equal(right.numbers, before[1])


def test_an_operand_without_a_quantizer_stays(product):
    left, right, weights = product
    bare = Side(right.values, None, right.cells, None)
    assert not bare.search(left, weights.mT)
    left.search(bare, weights)
    assert torch.equal(bare.other(weights).change, torch.zeros_like(right.values.mT))


def test_weights_of_scores_are_the_diagonal_behind_the_softmax():
    q, k, v = draw(1, 1, 4, 3).double(), draw(1, 1, 5, 3, seed=1).double(), draw(1, 1, 5, 3, seed=2).double()
    importance = Importance(torch.rand(1, 1, 4), torch.rand(1, 3))
    weights = output_weights(importance, torch.tensor([0]))
    channels = importance.channels / importance.channels.mean()
    torch.testing.assert_close(weights[0, 0], importance.rows[0, 0].unsqueeze(1) * channels)
    scores = q @ k.mT
    found = score_weights({"probs": scores.softmax(-1), "v": v}, weights.double())
    jacobian = torch.autograd.functional.jacobian(lambda s: s.softmax(-1) @ v, scores)[0, 0, :, :, 0, 0]
    expected = (jacobian.square() * weights[0, 0].double()[..., None, None]).sum((0, 1))
    torch.testing.assert_close(found[0, 0], expected)


def test_points_are_whole_and_of_all_groups():
    timesteps, groups = torch.arange(40), Groups((10, 20, 30))
    chosen = chosen_points(timesteps, groups, 8, 0)
    assert len(chosen.unique()) == 8
    assert groups.of(timesteps[chosen]).view(2, 4).sort(1).values.tolist() == [[0, 1, 2, 3]] * 2
    assert chosen_points(timesteps, ALL, 100, 0).sort().values.equal(timesteps)
    assert not torch.equal(chosen_points(timesteps, groups, 8, 1), chosen)


def test_importances_of_attentions_are_by_head(tiny_model, data):
    attention = tiny_model.attentions()[1]
    last = next(site for site in tiny_model.sites() if site.name == f"{attention.name}.to_out.0")
    found = output_importances(tiny_model, data, [last], Probe(), 0, [attention])
    one = found[attention.name]
    assert one.rows.shape == (8, attention.heads, attention.tokens)
    assert one.channels.shape == (attention.heads, attention.head_dim)
    torch.testing.assert_close(one.rows.mean((0, 2)), one.channels.mean(1))
    alone = output_importances(tiny_model, data, [last], Probe(), 0)
    assert torch.equal(alone[last.name].rows, found[last.name].rows)


def attention(rule=RULE, granularity="head", probabilities=None, operands=("q", "k", "v", "probs")):
    return StaticAttention(
        operands=list(operands),
        granularity=granularity,
        grid="symmetric_full",
        range=rule,
        probabilities=probabilities or TwoRegionProbabilities(),
    )


def recipe(part, rule=None, rounding=None, time=1, bits=4):
    ranges = rule or MinMax()
    return Method(
        scope=Scope(roles=["qkv", "attn_out", "ffn_up", "ffn_down"] if rule or rounding else ["ffn_down"]),
        weight=WeightGrid(granularity="row", grid="asymmetric", range=ranges),
        activation=StaticActivation(
            granularity="tensor", grid="asymmetric", range=ranges, time=EqualGroups(groups=time)
        ),
        rounding=rounding or Nearest(),
        weight_bits=8,
        activation_bits=bits,
        calibration=None,
        attention=part,
    )


@pytest.fixture
def data() -> CalibrationData:
    visited = list(range(0, 1000, 125))[::-1]
    x = draw(8, 4, 8, 8) * torch.linspace(0.5, 2, 8).view(-1, 1, 1, 1)  # ranges change over time
    return CalibrationData(x, torch.tensor(visited), torch.arange(8) % 10, 3, visited=visited)


def distance(model, quantized, data):
    before = model.denoise(data.x, data.t, data.y)[:, :4]
    with quantized.installed(model):
        return float((model.denoise(data.x, data.t, data.y)[:, :4] - before).square().mean())


def numbers(quantized):
    return {
        f"{name}.{key}": own for name, part in quantized.attention.items() for key, own in part.state_dict().items()
    }


PROBABILITIES = [
    TwoRegionProbabilities(),
    UnsignedProbabilities(range=MinMax()),
    LogSqrt2Probabilities(),
    ReleasedSumProbabilities(),
    Log2Probabilities(),
    LogSqrt2Probabilities(renormalise=True),
]


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("granularity", ["head", "tensor"])
@pytest.mark.parametrize("probabilities", PROBABILITIES, ids=lambda p: p.grid + "_sum_1" * p.renormalise)
def test_operands_of_every_kind_are_searched(tiny_model, data, probabilities, granularity, time):
    start = attention(MinMax(), granularity, probabilities)
    plain = quantize(tiny_model, recipe(start, time=time), lambda: data)
    part = recipe(attention(RULE, granularity, probabilities), time=time)
    searched = quantize(tiny_model, part, lambda: data)
    before, after = numbers(plain), numbers(searched)
    assert before.keys() == after.keys()
    moved = {key.split(".")[-2] for key in before if not torch.equal(before[key], after[key])}
    assert moved >= {"q", "k", "v"}
    assert distance(tiny_model, searched, data) < distance(tiny_model, plain, data)
    for name, layer in plain.layers.items():
        assert torch.equal(layer.weight, searched.layers[name].weight)


def test_operands_of_a_video_are_searched_frame_by_frame_and_of_a_text_with_its_mask(tmp_path):
    for family in ("latte", "pixart_sigma"):
        model = load(family, tmp_path)
        data = points(model, 8)
        plain, searched = (
            quantize(model, recipe(attention(rule)), lambda data=data: data) for rule in (MinMax(), RULE)
        )
        assert numbers(plain).keys() == numbers(searched).keys()
        assert distance(model, searched, data) < distance(model, plain, data)
        assert {a.processor for a in model.attentions()} == searched.attention.keys()


def test_all_three_are_searched_together_and_the_same_fit_gives_the_same_bytes(tiny_model, data, tmp_path):
    part = recipe(attention(), RULE, time=2)
    first = quantize(tiny_model, part, lambda: data, tmp_path)
    middle = tmp_path / "grids" / "block_001.safetensors"
    content = middle.read_bytes()
    middle.unlink()
    resumed = quantize(tiny_model, part, lambda: data, tmp_path)
    assert middle.read_bytes() == content
    finished = quantize(tiny_model, part, lambda: data, tmp_path)
    for other in (resumed, finished):
        assert all(torch.equal(own, numbers(other)[key]) for key, own in numbers(first).items())
        assert all(torch.equal(layer.weight, other.layers[name].weight) for name, layer in first.layers.items())
    linear = quantize(tiny_model, recipe(attention(MinMax()), RULE, time=2), lambda: data)
    assert all(torch.equal(layer.weight, linear.layers[name].weight) for name, layer in first.layers.items())


def test_every_group_of_timesteps_ranks_its_candidates_on_items_of_its_own():
    """Items lie point by point, whose heads are of one group: the first of them would be of a few groups."""
    points, heads, groups = 32, 16, 10
    cells = (torch.arange(points) % groups).repeat_interleave(heads)
    left = draw(points * heads, 8, 4) * 0.3 * (1 + cells.view(-1, 1, 1))  # each group wants another multiple
    other = Other(
        draw(points * heads, 4, 8, seed=1), torch.zeros(points * heads, 4, 8), torch.ones(1, 1, 1).expand(512, 8, 8)
    )
    moving = Moving(left, Uniform(-8, 7), cells)
    table = multiples(torch.tensor([[1.0, 0.0]]).repeat(groups, 1), 0, RULE.factors())
    ranked = shortlist(moving, [other], table)
    assert len(ranked) < len(table)
    expected = best(moving, [other], table)
    assert torch.equal(best(moving, [other], ranked), expected)
    assert len(expected[:, 0].unique()) > groups // 2


def test_operands_have_the_candidates_of_their_own_rule(tiny_model, data):
    """Whatever those of weights and inputs are, which are searched by themselves."""
    few = replace(RULE, candidates=3, alpha=0.9)

    def found(own, others=None):
        return numbers(quantize(tiny_model, recipe(attention(own), others), lambda: data))

    alone = found(RULE)
    assert all(torch.equal(own, alone[name]) for name, own in found(RULE, few).items())
    assert any(not torch.equal(own, alone[name]) for name, own in found(few, RULE).items())


def test_golden_10_sixteen_bits_are_full_precision(tiny_model, data):
    part = replace(recipe(attention(), RULE, bits=16), weight_bits=16)
    assert distance(tiny_model, quantize(tiny_model, part, lambda: data), data) == 0


def test_gptq_sees_the_operands_that_were_found(tiny_model, data):
    plain = quantize(tiny_model, recipe(attention(MinMax()), rounding=GPTQ()), lambda: data)
    searched = quantize(tiny_model, recipe(attention(), rounding=GPTQ()), lambda: data)
    assert any(not torch.equal(layer.weight, searched.layers[name].weight) for name, layer in plain.layers.items())


def test_some_operands_alone(tiny_model, data):
    found = numbers(quantize(tiny_model, recipe(attention(operands=("k", "probs"))), lambda: data))
    plain = numbers(quantize(tiny_model, recipe(attention(MinMax(), operands=("k", "probs"))), lambda: data))
    assert {key.split(".")[-2] for key in found} == {"k", "probs"}
    assert any(not torch.equal(own, plain[key]) for key, own in found.items())


def test_without_a_gradient_they_stay_and_a_warning_says_so(tiny_model, data, caplog, monkeypatch):
    monkeypatch.setattr(LegacyKL, "slopes", lambda *_: iter([torch.zeros(len(_[1]), 4, 8, 8)]))
    searched = quantize(tiny_model, recipe(attention(replace(RULE, target=LegacyKL()))), lambda: data)
    plain = quantize(tiny_model, recipe(attention(MinMax())), lambda: data)
    assert "nothing reaches the prediction from transformer_blocks.0.attn1" in caplog.text
    assert all(torch.equal(own, numbers(plain)[key]) for key, own in numbers(searched).items())


def test_rules_must_agree_and_16_bits_search_nothing(tiny_model):
    other = recipe(attention(replace(RULE, tokens=7)), RULE)
    assert "attention.range.tokens=7 must be equal" in other.problems(tiny_model.sites())[0]
    assert not recipe(attention(replace(RULE, tokens=7)), RULE, bits=16).problems(tiny_model.sites())


def test_frames_are_chosen_fairly_at_the_shape_of_latte():
    points, frames, kept = 128, 16, 32  # 8,192 queries of 256 tokens
    times = torch.linspace(999, 0, points).long().repeat_interleave(frames)
    seen = torch.zeros(points, frames)
    for seed in range(400):
        items = chosen_points(times, ALL, kept, seed)
        assert len(items.unique()) == kept
        seen.view(-1)[items] += 1
    by_point, by_frame = seen.sum(1), seen.sum(0)
    assert by_point.sum() == 400 * kept
    for found in (by_point, by_frame):  # binomial: within five standard deviations of equal shares
        mean = found.mean()
        assert ((found - mean).abs() < 5 * mean.sqrt()).all()
