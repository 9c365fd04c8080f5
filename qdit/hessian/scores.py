"""Scores of candidate ranges of one layer, all candidates at once: pure functions on tensors.

With weight and input on their grids a layer z = W x gives ẑ = Ŵ x̂. The score of a pair of grids is

    Σ_nr a_n b_r e_nr²        e = z - ẑ = (W - Ŵ) x̂ - W (x̂ - x) = (W - Ŵ) x - Ŵ (x̂ - x)

with the importance a of input rows and b of output channels (`qdit.hessian.target`). One candidate after the other
costs a product with all rows each. Two ways around that:

* Weights. For row r of the weight, with δ = w_r - ŵ_r, the score is δ S δᵀ - 2 δ · L_r + constant, where S = Σ a x̂ x̂ᵀ
  and L = Σ a (W (x̂ - x)) x̂ᵀ: after one pass over the data a candidate costs nothing that grows with it. Rows of the
  weight do not interact; groups along a row do, and are searched one after the other, given all others.
* Inputs. Candidates are ranked on a sample of the rows, and the best of them, the start and the current one compared on
  all rows. The winner is exact among those; with few rows, all candidates are compared on all of them.

Candidates are factors of the steps of a start, and the first of equal ones wins. Sums over rows of the input run in
pieces, and candidates in chunks of `CHUNK_VALUES` values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qdit.quant.affine import SMALLEST_SCALE, Affine, round_to_grid
from qdit.quant.books import Book
from qdit.quant.spec import QuantSpec

CHUNK_VALUES = 2**24  # of all candidates held at once: 64 MiB
PIECE_ROWS = 1024  # of the input, whose errors are taken at once
SAMPLE_ROWS = 512  # on which candidates for inputs are ranked, or one row in SAMPLE_SHARE where that is more
SAMPLE_SHARE = 32
SHORTLIST = 6  # candidates for inputs that are compared on all rows


@dataclass(frozen=True)
class Layer:
    """A linear layer and how much an error in its output matters."""

    weight: Float[Tensor, "out channels"]
    rows: Float[Tensor, " n"]
    """Importance of each row of the input."""
    channels: Float[Tensor, " out"]
    """Importance of each channel of the output."""


def scaled(grid: Affine, factors: Float[Tensor, "#rows 1"]) -> Affine:
    """The grid with its steps multiplied."""
    return replace(grid, scale=(grid.scale * factors).clamp(min=SMALLEST_SCALE))


def of_candidates(grid: Affine, factors: Float[Tensor, " candidates"]) -> Affine:
    """The grids of all candidates, one after the other: [candidates * rows, 1]."""
    scale = (grid.scale * factors.view(-1, 1, 1)).clamp(min=SMALLEST_SCALE)
    return replace(grid, scale=scale.flatten(0, 1), zero_point=grid.zero_point.repeat(len(factors), 1))


@dataclass(frozen=True)
class Moments:
    """What the score of a weight depends on: S and L of the module's formulas."""

    second: Float[Tensor, "channels channels"]
    slope: Float[Tensor, "out channels"]


def moments(layer: Layer, inputs: Float[Tensor, "n channels"], rounded: Float[Tensor, "n channels"]) -> Moments:
    """Sum over the rows of an input and of what it is rounded to."""
    second = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
    slope = torch.zeros_like(layer.weight)
    pieces = (part.split(PIECE_ROWS) for part in (inputs, rounded, layer.rows))
    for x, x_hat, importance in zip(*pieces, strict=True):
        weighted = x_hat * importance.unsqueeze(1)
        second.addmm_(x_hat.T, weighted)
        if inputs is not rounded:
            slope.addmm_((layer.weight @ (x_hat - x).T), weighted)
    return Moments(second, slope)


def search_weight(
    layer: Layer,
    known: Moments,
    start: Affine,
    spec: QuantSpec,
    factors: Float[Tensor, " candidates"],
    current: Float[Tensor, "rows 1"],
) -> Float[Tensor, "rows 1"]:
    """The best factor for each row of `as_rows(weight, spec)`.

    Args:
        layer: of which weight.
        known: of its input.
        start: the grid that is multiplied.
        spec: of the weight.
        factors: the candidates.
        current: the factors so far, which groups of a row that were not reached yet have.
    """
    out, channels = layer.weight.shape
    size = spec.group_size or channels

    def table(part: Tensor) -> Tensor:  # [rows, 1] -> [out, groups]; a tensor's one row is every channel's
        return part.view(-1, channels // size).expand(out, -1)

    scale, zero, found = table(start.scale), table(start.zero_point), table(current).clone()
    change = torch.empty_like(layer.weight)
    grids = [replace(start, scale=scale[:, [k]], zero_point=zero[:, [k]]) for k in range(channels // size)]
    groups = [slice(first, first + size) for first in range(0, channels, size)]
    for k, group in enumerate(groups):
        own = layer.weight[:, group]
        change[:, group] = own - round_to_grid(own, scaled(grids[k], found[:, [k]]))
    for k, group in enumerate(groups):
        own, second = layer.weight[:, group], known.second[group, group]
        slope = change @ known.second[:, group] - change[:, group] @ second - known.slope[:, group]
        errors = _weight_errors(own, second, slope, grids[k], factors)
        if spec.granularity == "tensor":
            errors = (errors @ layer.channels).unsqueeze(1)
        found[:, k] = factors[errors.argmin(0)]
        change[:, group] = own - round_to_grid(own, scaled(grids[k], found[:, [k]]))
    return found[: len(current)].reshape(-1, 1)


def _weight_errors(
    weight: Float[Tensor, "out group"], second: Tensor, slope: Tensor, start: Affine, factors: Tensor
) -> Float[Tensor, "candidates out"]:
    """The score of each candidate for a group of columns, by output channel, up to a constant."""
    errors = []
    for some in factors.split(max(1, CHUNK_VALUES // weight.numel())):
        rounded = round_to_grid(weight.repeat(len(some), 1), of_candidates(start, some))
        change = (weight - rounded.view(len(some), *weight.shape)).flatten(0, 1)
        curved = (change @ second).add_(slope.repeat(len(some), 1), alpha=2)
        errors.append(curved.mul_(change).sum(-1).view(len(some), -1))
    return torch.cat(errors)


@dataclass(frozen=True)
class InputGrid:
    """The code-book of an input, whose numbers may depend on the time."""

    book: Book
    numbers: Float[Tensor, "groups numbers"]
    """Of the book, for each group of timesteps."""
    step: int
    """Which number is searched."""
    groups: Int[Tensor, " n"]
    """The group of each row of the input."""

    def piece(self, rows: slice) -> "InputGrid":
        """For some of the rows."""
        return replace(self, groups=self.groups[rows])

    def rounded(
        self, x: Float[Tensor, "n channels"], factors: Float[Tensor, "candidates groups"]
    ) -> Float[Tensor, "candidates n channels"]:
        """The rows with the step multiplied, for each candidate."""
        numbers = self.numbers.repeat(len(factors), 1, 1)
        numbers[..., self.step] = (numbers[..., self.step] * factors).clamp(min=SMALLEST_SCALE)
        own = numbers[:, self.groups] if len(self.numbers) > 1 else numbers
        return self.book(x, *own.unsqueeze(2).unbind(-1))


def input_errors(
    layers: Sequence[Layer],
    weights: Sequence[Float[Tensor, "out channels"]],
    inputs: Float[Tensor, "n channels"],
    start: InputGrid,
    factors: Float[Tensor, "candidates groups"],
) -> Float[Tensor, "candidates groups"]:
    """The score of each candidate for the input, summed over the layers that read it; float64.

    Args:
        layers: the layers.
        weights: on their grids.
        inputs: the rows.
        start: the grid whose steps are multiplied.
        factors: the candidates of each group of timesteps.
    """
    totals = torch.zeros(factors.shape, dtype=torch.float64, device=inputs.device)
    roots = [layer.channels.sqrt().unsqueeze(1) for layer in layers]
    pairs = list(zip(layers, weights, roots, strict=True))
    fixed = [((layer.weight - rounded) * root).T for layer, rounded, root in pairs]
    moving = [(rounded * root).T for _, rounded, root in pairs]
    widest = max(max(part.shape) for part in moving)
    for first in range(0, len(inputs), PIECE_ROWS):
        rows = slice(first, first + PIECE_ROWS)
        x, grid = inputs[rows], start.piece(rows)
        without = [x @ part for part in fixed]
        member = F.one_hot(grid.groups, factors.shape[1]).double()
        for some in torch.arange(len(factors)).split(max(1, CHUNK_VALUES // (len(x) * widest))):
            moved = grid.rounded(x, factors[some]).sub_(x)
            error = torch.zeros(moved.shape[:2], dtype=torch.float64, device=x.device)
            for layer, part, base in zip(layers, moving, without, strict=True):
                error += (moved @ part).sub_(base).square_().sum(-1) * layer.rows[rows]
            totals[some] += error @ member
    return totals


def search_input(
    layers: Sequence[Layer],
    weights: Sequence[Float[Tensor, "out channels"]],
    inputs: Float[Tensor, "n channels"],
    start: InputGrid,
    factors: Float[Tensor, " candidates"],
    current: Float[Tensor, " groups"],
) -> Float[Tensor, " groups"]:
    """The best factor of each group of timesteps, for an input whose rows are in random order.

    Args:
        layers, weights, inputs, start: as `input_errors`.
        factors: the candidates; the first one is compared in any case.
        current: the factors so far.
    """
    tried = factors.unsqueeze(1).expand(-1, len(current))
    sample = max(SAMPLE_ROWS, SAMPLE_ROWS * len(current) // 4, len(inputs) // SAMPLE_SHARE)
    if 2 * sample <= len(inputs):
        few = [replace(layer, rows=layer.rows[:sample]) for layer in layers]
        part = inputs[:sample], start.piece(slice(sample))
        ranked = input_errors(few, weights, *part, tried).argsort(stable=True, dim=0)
        tried = torch.cat([tried[:1], current.unsqueeze(0), tried.gather(0, ranked[:SHORTLIST])])
    best = input_errors(layers, weights, inputs, start, tried).argmin(0, keepdim=True)
    return tried.gather(0, best)[0]
