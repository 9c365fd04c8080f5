"""The search of one layer's ranges: against naive loops over candidates, whatever the chunks."""

from itertools import pairwise

import pytest
import torch

from qdit.hessian import products, scores
from qdit.hessian.grids import multiples
from qdit.hessian.linears import KEPT, reader
from qdit.hessian.products import Moving, best, errors, reached, shortlist, summed
from qdit.hessian.rule import Hessian
from qdit.hessian.scores import Layer, moments, search_weight
from qdit.hessian.target import Probe
from qdit.quant.affine import affine
from qdit.quant.books import Uniform
from qdit.quant.ranges import MinMax
from qdit.quant.regions import TwoSided
from qdit.quant.spec import QuantSpec, as_rows
from qdit.weight import WeightGrid

RULE = Hessian(target=Probe(), candidates=40)
FACTORS = RULE.factors()
INPUT = QuantSpec(bits=4, granularity="tensor", grid="asymmetric", dynamic=False)


def layer(seed=0, out=6, channels=24, rows=200):
    """A layer with uneven weights and importances, and its inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, channels, generator=generator) * torch.rand(out, 1, generator=generator).mul(2).exp()
    inputs = torch.randn(rows, channels, generator=generator) * torch.rand(channels, generator=generator).mul(3).exp()
    importance = [torch.rand(n, generator=generator).square() + 0.01 for n in (rows, out)]
    return Layer(weight, *importance), inputs + 0.3 * inputs.roll(1, 1)


def start_of(rows, spec):
    return affine(*MinMax()(rows, spec), spec)


class Input:
    """The search of a layer's input from the minimum to the maximum, the same start for each group of rows."""

    def __init__(self, inputs, groups=1, book=None, numbers=None):
        start = start_of(inputs.view(1, -1), INPUT)
        book = book or Uniform(start.low, start.high)
        self.numbers = torch.cat([start.scale, start.zero_point], 1) if numbers is None else numbers
        self.numbers = self.numbers.repeat(groups, 1)
        self.step = int(isinstance(book, TwoSided))
        self.moving = Moving(inputs.unsqueeze(1), book, torch.arange(len(inputs)) % groups)
        self.table = multiples(self.numbers, self.step, FACTORS)

    def others(self, layers, hats):
        return [reader(one, hat) for one, hat in zip(layers, hats, strict=True)]

    def errors(self, layers, hats, tried=None):
        return errors(self.moving, self.others(layers, hats), self.table if tried is None else tried)

    def search(self, layers, hats):
        """The factor of each group."""
        others = self.others(layers, hats)
        found = best(self.moving, others, shortlist(self.moving, others, self.table))
        return found[:, self.step] / self.numbers[:, self.step]

    def at(self, factors):
        """The numbers with these factors."""
        numbers = self.numbers.clone()
        numbers[:, self.step] *= 1 if factors is None else factors
        return numbers

    def rounded(self, factors=None):
        return self.moving.rounded(self.at(factors).unsqueeze(0))[:, 0, 0]


def is_factor(found, expected):
    return torch.allclose(found, torch.as_tensor(expected), rtol=1e-5, atol=0)


def best_weight(one, known, start, spec, current, tried=None):
    return search_weight(one, known, start, spec, COLUMN if tried is None else tried, current)[0].unsqueeze(1)


COLUMN = FACTORS.unsqueeze(1)


def rounded(weight, start, spec, factors):
    return start.scaled(factors).round(as_rows(weight, spec)).view(weight.shape)


def error(layer, weight, inputs, rounded_inputs):
    """The score by its definition, float64."""
    change = inputs.double() @ layer.weight.double().T - rounded_inputs.double() @ weight.double().T
    return float((change.square() * layer.rows.double()[:, None] * layer.channels.double()).sum())


def naive_weight(layer, start, spec, inputs, rounded_inputs, current):
    """One candidate at a time, for one row of the grid at a time, given all others."""
    best = current.clone()
    order = torch.arange(len(current)).view(len(layer.weight), -1).T.flatten() if len(current) > 1 else [0]
    for row in order:
        errors = []
        for factor in FACTORS:
            best[row] = factor
            errors.append(error(layer, rounded(layer.weight, start, spec, best), inputs, rounded_inputs))
        best[row] = FACTORS[int(torch.tensor(errors, dtype=torch.float64).argmin())]
    return best


def weight_case(granularity, grid="asymmetric", bits=3, seed=0):
    one, inputs = layer(seed)
    size = 8 if granularity == "group" else None
    spec = QuantSpec(bits=bits, granularity=granularity, group_size=size, grid=grid, dynamic=False)
    start = WeightGrid(granularity=granularity, group_size=size, grid=grid, range=RULE).fit(one.weight, spec)
    return one, inputs, spec, start, torch.ones_like(start.scale)


@pytest.mark.parametrize("grid", ["asymmetric", "asymmetric_free", "symmetric", "symmetric_full"])
@pytest.mark.parametrize("granularity", ["row", "tensor", "group"])
def test_weights_get_the_naive_loops_factors(granularity, grid):
    one, inputs, spec, start, current = weight_case(granularity, grid)
    rounded_inputs = start_of(inputs.view(1, -1), INPUT).round(inputs.view(1, -1)).view(inputs.shape)
    for known in (inputs, rounded_inputs):
        found = best_weight(one, moments(one, inputs, known), start, spec, current)
        assert torch.equal(found, naive_weight(one, start, spec, inputs, known, current))
        assert found.unique().numel() > 1 or granularity == "tensor"


@pytest.mark.parametrize(
    "own",
    [
        {"grid": "e2m1"},
        {"grid": "e2m1", "granularity": "group", "group_size": 16, "scale": "e4m3"},
        {"grid": "e2m1", "granularity": "group", "group_size": 32, "scale": "e8m0"},
    ],
    ids=["fp4", "nvfp4", "mxfp4"],
)
def test_scales_of_levels_get_the_naive_loops_factors_as_they_can_be_kept(own):
    one, inputs = layer(channels=32)
    spec = QuantSpec(bits=4, dynamic=False, **own)
    start = WeightGrid(**({"granularity": "row"} | own), range=RULE).fit(one.weight, spec)
    current = torch.ones_like(start.scale)
    found = best_weight(one, moments(one, inputs, inputs), start, spec, current)
    naive = naive_weight(one, start, spec, inputs, inputs, current)
    assert torch.equal(start.scaled(found).scale, start.scaled(naive).scale)  # several factors may be kept alike


def test_golden_8_both_ends_and_the_range_itself_are_compared():
    factors = Hessian(target=Probe()).factors()
    assert len(factors) == 102
    assert factors[0] == 1
    torch.testing.assert_close(torch.stack([factors[1], factors[-1]]), torch.tensor([0.01, 1.2]))
    one, inputs = layer()
    for end in (factors[1], factors[-1]):  # an input on the grid of an end has no error there
        grid = Input(inputs)
        own = multiples(grid.numbers, 0, end.view(1))
        grid.moving = Moving(grid.moving.rounded(own)[:, 0], grid.moving.book, grid.moving.cells)
        grid.table = multiples(grid.numbers, 0, factors)
        assert is_factor(grid.search([one], [one.weight]), end)


@pytest.mark.parametrize("granularity", ["row", "tensor", "group"])
def test_weights_are_ranked_and_later_rounds_compare_the_best(granularity):
    one, inputs, spec, start, current = weight_case(granularity)
    known = moments(one, inputs, inputs)
    ranked = search_weight(one, known, start, spec, COLUMN, current)
    assert ranked.shape == (len(FACTORS), len(current))
    assert torch.equal(ranked.sort(0).values, FACTORS.sort().values.unsqueeze(1).expand_as(ranked))
    again = search_weight(one, known, start, spec, ranked[:KEPT], ranked[0].unsqueeze(1))
    if granularity != "group":  # groups of a row go on where the others are
        assert torch.equal(again, ranked[:KEPT])


@pytest.mark.parametrize("chunk", [1, 500, 2**20])
@pytest.mark.parametrize("granularity", ["row", "group"])
def test_chunks_and_pieces_do_not_matter(granularity, chunk, monkeypatch):
    one, inputs, spec, start, current = weight_case(granularity)
    grid = Input(inputs, 3)

    def both():
        weight = best_weight(one, moments(one, inputs, inputs), start, spec, current)
        return weight, grid.errors([one], [rounded(one.weight, start, spec, weight)])

    expected = both()
    monkeypatch.setattr(products, "CHUNK_VALUES", {"cpu": chunk})
    monkeypatch.setattr(scores, "PIECE_ROWS", 17 if chunk == 500 else 1024)
    found = both()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1].argmin(0), expected[1].argmin(0))
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=0)


def test_inputs_get_the_naive_loops_factor_summed_over_their_readers():
    one, inputs = layer()
    other = layer(1)[0]
    start = start_of(inputs.view(1, -1), INPUT)
    hats = [one.weight + 0.01, other.weight]
    naive = [
        sum(
            error(each, hat, inputs, start.scaled(factor).round(inputs.view(1, -1)).view(inputs.shape))
            for each, hat in zip((one, other), hats, strict=True)
        )
        for factor in FACTORS.view(-1, 1, 1)
    ]
    naive = torch.tensor(naive, dtype=torch.float64)
    grid = Input(inputs)
    torch.testing.assert_close(grid.errors([one, other], hats), naive.unsqueeze(1), rtol=1e-4, atol=0)
    found = grid.search([one, other], hats)
    assert is_factor(found, FACTORS[naive.argmin()])
    assert found != 1


def test_outputs_that_inputs_cannot_reach_change_no_difference():
    one, inputs = layer(out=90, channels=8)
    hat = one.weight + 0.02 * one.weight.roll(1, 0)
    grid, other = Input(inputs), reader(one, hat)
    assert reached(other).rounded.shape == (8, 8)
    whole, fewer = (errors(grid.moving, [each], grid.table) for each in (other, reached(other)))
    torch.testing.assert_close(fewer - fewer[0], whole - whole[0], rtol=1e-4, atol=1e-4 * float(whole.min()))
    assert reached(reader(layer()[0], layer()[0].weight)).rounded.shape == (24, 6)


def test_random_sums_of_outputs_rank_as_all_do():
    one, inputs = layer(out=400, rows=600)
    grid, other = Input(inputs), reader(one, one.weight + 0.01)
    assert summed(other, 0).rounded.shape == (24, products.SUMS)
    whole, few = (errors(grid.moving, [each], grid.table)[:, 0] for each in (other, summed(other, 0)))
    assert whole[few.argmin()] <= 1.01 * whole.min()
    narrow = reader(layer()[0], layer()[0].weight)
    assert summed(narrow, 0) is narrow


def test_with_many_rows_a_sample_ranks_and_all_rows_decide(monkeypatch):
    one, inputs = layer(rows=3000)
    grid = Input(inputs)
    whole = grid.errors([one], [one.weight])[:, 0]
    monkeypatch.setattr(products, "SAMPLE_ROWS", 100)
    seen = []
    monkeypatch.setattr(
        products, "errors", lambda moving, *rest: seen.append(len(moving.values)) or errors(moving, *rest)
    )
    found = grid.search([one], [one.weight])
    assert seen == [100, 3000]
    assert whole[(found - FACTORS).abs().argmin()] <= 1.001 * whole.min()


@pytest.mark.parametrize("granularity", ["row", "tensor", "group"])
def test_ties_keep_the_original_scale(granularity):
    one, inputs, spec, start, current = weight_case(granularity)
    nothing = Layer(one.weight, torch.zeros_like(one.rows), one.channels)
    found = best_weight(nothing, moments(nothing, inputs, inputs), start, spec, current)
    assert torch.equal(found, torch.ones_like(found))
    assert Input(inputs).search([nothing], [one.weight]) == 1


def test_importance_counts_but_not_its_size():
    one, inputs, spec, start, current = weight_case("row")
    known = moments(one, inputs, inputs)
    found = best_weight(one, known, start, spec, current)
    larger = Layer(one.weight, 1000 * one.rows, one.channels)
    assert torch.equal(best_weight(larger, moments(larger, inputs, inputs), start, spec, current), found)
    last_only = Layer(one.weight, torch.eye(len(inputs))[-1], one.channels)
    alone = best_weight(last_only, moments(last_only, inputs, inputs), start, spec, current)
    assert not torch.equal(alone, found)


def test_equal_importances_are_least_squares():
    one, inputs, spec, start, current = weight_case("row")
    plain = Layer(one.weight, torch.ones_like(one.rows), torch.ones_like(one.channels))
    found = best_weight(plain, moments(plain, inputs, inputs), start, spec, current)
    for row in range(len(one.weight)):
        squares = []
        for factor in FACTORS:
            hat = rounded(one.weight, start, spec, torch.full_like(current, float(factor)))[row]
            squares.append(((inputs @ (one.weight[row] - hat)).double() ** 2).mean())
        assert found[row] == FACTORS[int(torch.stack(squares).argmin())]


@pytest.mark.parametrize("granularity", ["row", "tensor", "group"])
def test_the_objective_never_rises_from_half_round_to_half_round(granularity):
    one, inputs, spec, start, weight = weight_case(granularity)
    grid, factor, path = Input(inputs), torch.ones(1), []

    def state():
        x_hat = grid.rounded(factor)
        hat = rounded(one.weight, start, spec, weight)
        path.append(error(one, hat, inputs, x_hat))
        return hat, x_hat

    _, x_hat = state()
    for _ in range(3):
        weight = best_weight(one, moments(one, inputs, x_hat), start, spec, weight)
        hat, _ = state()
        factor = grid.search([one], [hat])
        _, x_hat = state()
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(path))
    assert path[-1] < 0.8 * path[0]


def test_each_group_of_timesteps_gets_its_own_best_factor():
    one, inputs = layer(rows=300)
    group = torch.arange(300) % 3
    inputs = inputs * (1 + group).unsqueeze(1)  # the whole range suits the last group alone
    grid, hats = Input(inputs, 3), [one.weight + 0.01]
    found = grid.search([one], hats)
    for number in range(3):
        own = group == number
        part = Layer(one.weight, one.rows[own], one.channels)
        alone = Input(inputs[own], 1, grid.moving.book, grid.numbers[:1])
        assert is_factor(alone.search([part], hats), found[number])
    assert found[0] < found[2]


def test_of_two_sides_the_positive_step_is_searched():
    one, inputs = layer()
    inputs = torch.nn.functional.gelu(inputs)
    book, numbers = TwoSided(4), torch.tensor([[0.02, 1.0]])
    grid = Input(inputs, 1, book, numbers)
    candidates = grid.moving.rounded(grid.table)[:, :, 0].transpose(0, 1)
    for factor, x_hat in zip(FACTORS, candidates, strict=True):
        assert torch.equal(x_hat, book(inputs, torch.tensor(0.02), factor))
    naive = [error(one, one.weight, inputs, x_hat) for x_hat in candidates]
    assert is_factor(grid.search([one], [one.weight]), FACTORS[torch.tensor(naive).argmin()])
