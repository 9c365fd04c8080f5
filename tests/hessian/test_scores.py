"""The search of one layer's ranges: against naive loops over candidates, whatever the chunks."""

from itertools import pairwise

import pytest
import torch

from qdit.hessian import scores
from qdit.hessian.rule import Hessian
from qdit.hessian.scores import InputGrid, Layer, input_errors, moments, scaled, search_input, search_weight
from qdit.hessian.target import Probe
from qdit.quant.affine import affine, round_to_grid
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


def input_grid(inputs, groups=1):
    """A grid from the minimum to the maximum, the same for each group of rows."""
    start = start_of(inputs.view(1, -1), INPUT)
    numbers = torch.cat([start.scale, start.zero_point], 1).repeat(groups, 1)
    return InputGrid(Uniform(start.low, start.high), numbers, 0, torch.arange(len(inputs)) % groups)


COLUMN = FACTORS.unsqueeze(1)
ONE = torch.ones(1)


def rounded(weight, start, spec, factors):
    return round_to_grid(as_rows(weight, spec), scaled(start, factors)).view(weight.shape)


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
    rounded_inputs = round_to_grid(inputs.view(1, -1), start_of(inputs.view(1, -1), INPUT)).view(inputs.shape)
    for known in (inputs, rounded_inputs):
        found = search_weight(one, moments(one, inputs, known), start, spec, FACTORS, current)
        assert torch.equal(found, naive_weight(one, start, spec, inputs, known, current))
        assert found.unique().numel() > 1 or granularity == "tensor"


@pytest.mark.parametrize("chunk", [1, 500, 2**20])
@pytest.mark.parametrize("granularity", ["row", "group"])
def test_chunks_and_pieces_do_not_matter(granularity, chunk, monkeypatch):
    one, inputs, spec, start, current = weight_case(granularity)
    grid = input_grid(inputs)

    def both():
        weight = search_weight(one, moments(one, inputs, inputs), start, spec, FACTORS, current)
        hat = [rounded(one.weight, start, spec, weight)]
        return weight, input_errors([one], hat, inputs, grid, COLUMN)

    expected = both()
    monkeypatch.setattr(scores, "CHUNK_VALUES", chunk)
    monkeypatch.setattr(scores, "PIECE_ROWS", 17 if chunk == 500 else 1024)
    found = both()
    assert torch.equal(found[0], expected[0])
    assert int(found[1].argmin()) == int(expected[1].argmin())
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=0)


def test_inputs_get_the_naive_loops_factor_summed_over_their_readers():
    one, inputs = layer()
    other = layer(1)[0]
    start = start_of(inputs.view(1, -1), INPUT)
    hats = [one.weight + 0.01, other.weight]
    errors = [
        sum(
            error(each, hat, inputs, round_to_grid(inputs.view(1, -1), scaled(start, factor)).view(inputs.shape))
            for each, hat in zip((one, other), hats, strict=True)
        )
        for factor in FACTORS.view(-1, 1, 1)
    ]
    naive = torch.tensor(errors, dtype=torch.float64)
    errors = input_errors([one, other], hats, inputs, input_grid(inputs), COLUMN)
    torch.testing.assert_close(errors, naive.unsqueeze(1), rtol=1e-4, atol=0)
    found = search_input([one, other], hats, inputs, input_grid(inputs), FACTORS, ONE)
    assert found == FACTORS[int(naive.argmin())]
    assert found != 1


def test_with_many_rows_a_sample_ranks_and_all_rows_decide(monkeypatch):
    one, inputs = layer(rows=3000)
    start = input_grid(inputs)
    errors = input_errors([one], [one.weight], inputs, start, COLUMN)[:, 0]
    monkeypatch.setattr(scores, "SAMPLE_ROWS", 100)
    found = search_input([one], [one.weight], inputs, start, FACTORS, ONE)
    assert errors[found == FACTORS].min() <= 1.001 * errors.min()
    # A sample that ranks wrongly cannot make things worse than they were.
    monkeypatch.setattr(scores, "SAMPLE_ROWS", 1)
    monkeypatch.setattr(scores, "SAMPLE_SHARE", 10**6)
    current = FACTORS[[int(errors.argmin())]]
    assert search_input([one], [one.weight], inputs, start, FACTORS, current) == current


def test_both_ends_are_candidates_and_one_comes_first():
    factors = Hessian(target=Probe()).factors()
    assert factors[0] == 1
    assert len(factors) == 102
    torch.testing.assert_close(factors[1:].aminmax(), (torch.tensor(0.01), torch.tensor(1.2)))


@pytest.mark.parametrize("granularity", ["row", "tensor", "group"])
def test_ties_keep_the_original_scale(granularity):
    one, inputs, spec, start, current = weight_case(granularity)
    nothing = Layer(one.weight, torch.zeros_like(one.rows), one.channels)
    found = search_weight(nothing, moments(nothing, inputs, inputs), start, spec, FACTORS, current)
    assert torch.equal(found, torch.ones_like(found))
    assert search_input([nothing], [one.weight], inputs, input_grid(inputs), FACTORS, ONE) == 1


def test_importance_counts_but_not_its_size():
    one, inputs, spec, start, current = weight_case("row")
    known = moments(one, inputs, inputs)
    found = search_weight(one, known, start, spec, FACTORS, current)
    larger = Layer(one.weight, 1000 * one.rows, one.channels)
    assert torch.equal(search_weight(larger, moments(larger, inputs, inputs), start, spec, FACTORS, current), found)
    last_only = Layer(one.weight, torch.eye(len(inputs))[-1], one.channels)
    alone = search_weight(last_only, moments(last_only, inputs, inputs), start, spec, FACTORS, current)
    assert not torch.equal(alone, found)


def test_equal_importances_are_least_squares():
    one, inputs, spec, start, current = weight_case("row")
    plain = Layer(one.weight, torch.ones_like(one.rows), torch.ones_like(one.channels))
    found = search_weight(plain, moments(plain, inputs, inputs), start, spec, FACTORS, current)
    for row in range(len(one.weight)):
        squares = []
        for factor in FACTORS:
            hat = rounded(one.weight, start, spec, torch.full_like(current, float(factor)))[row]
            squares.append(((inputs @ (one.weight[row] - hat)).double() ** 2).mean())
        assert found[row] == FACTORS[int(torch.stack(squares).argmin())]


@pytest.mark.parametrize("granularity", ["row", "tensor", "group"])
def test_the_objective_never_rises_from_half_round_to_half_round(granularity):
    one, inputs, spec, start, weight = weight_case(granularity)
    grid, factor, path = input_grid(inputs), ONE, []

    def state():
        x_hat = grid.rounded(inputs, factor.unsqueeze(0))[0]
        hat = rounded(one.weight, start, spec, weight)
        path.append(error(one, hat, inputs, x_hat))
        return hat, x_hat

    _, x_hat = state()
    for _ in range(3):
        weight = search_weight(one, moments(one, inputs, x_hat), start, spec, FACTORS, weight)
        hat, _ = state()
        factor = search_input([one], [hat], inputs, grid, FACTORS, factor)
        _, x_hat = state()
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(path))
    assert path[-1] < 0.8 * path[0]


def test_each_group_of_timesteps_gets_its_own_best_factor():
    one, inputs = layer(rows=300)
    group = torch.arange(300) % 3
    inputs = inputs * (1 + group).unsqueeze(1)  # the whole range suits the last group alone
    grid, hats = input_grid(inputs, 3), [one.weight + 0.01]
    found = search_input([one], hats, inputs, grid, FACTORS, torch.ones(3))
    for number in range(3):
        own = group == number
        part = Layer(one.weight, one.rows[own], one.channels)
        alone = InputGrid(grid.book, grid.numbers[:1], 0, torch.zeros(100, dtype=torch.long))
        assert search_input([part], hats, inputs[own], alone, FACTORS, ONE) == found[number]
    assert found[0] < found[2]


def test_of_two_sides_the_positive_step_is_searched():
    one, inputs = layer()
    inputs = torch.nn.functional.gelu(inputs)
    book, numbers = TwoSided(4), torch.tensor([[0.02, 1.0]])
    grid = InputGrid(book, numbers, 1, torch.zeros(len(inputs), dtype=torch.long))
    candidates = grid.rounded(inputs, COLUMN)
    for factor, x_hat in zip(FACTORS, candidates, strict=True):
        assert torch.equal(x_hat, book(inputs, torch.tensor(0.02), factor))
    errors = [error(one, one.weight, inputs, x_hat) for x_hat in candidates]
    found = search_input([one], [one.weight], inputs, grid, FACTORS, ONE)
    assert found == FACTORS[int(torch.tensor(errors).argmin())]
