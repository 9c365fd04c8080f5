"""Scores of candidate ranges of a layer's weight, all candidates at once: pure functions on tensors.

With quantized weight and input a layer z = W x gives ẑ = Ŵ x̂. The score of a pair of grids is

    Σ_nr a_n b_r e_nr²        e = z - ẑ = (W - Ŵ) x̂ - W (x̂ - x)

with the importance a of input rows and b of output channels (`qdit.hessian.importance`). For row r of the weight, with
δ = w_r - ŵ_r, it is δ S δᵀ - 2 δ · L_r + constant, where S = Σ a x̂ x̂ᵀ (a weighted Hessian of the layer inputs) and
L = W Σ a (x̂ - x) x̂ᵀ. So after one pass over the data, the cost of a candidate does not grow with the data. Rows of
the weight do not interact; groups along a row do, and are searched one after the other, given all others. Inputs are
searched by `qdit.hessian.products`.

Candidates are factors on the scales of a starting grid, and the first of equal ones wins. Sums over rows of the input
run in pieces, and candidates in chunks that stay in a processor's cache.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.hessian.products import chunk_values
from qdit.quant.grid import RowGrid, mapped
from qdit.quant.spec import QuantSpec

PIECE_ROWS = 1024  # rows of the input that are summed at once


@dataclass(frozen=True)
class Layer:
    """A linear layer and how much an error in its output matters."""

    weight: Float[Tensor, "out channels"]
    rows: Float[Tensor, " n"]
    """Importance of each row of the input."""
    channels: Float[Tensor, " out"]
    """Importance of each channel of the output."""


def of_candidates(grid: RowGrid, factors: Float[Tensor, "candidates #rows"]) -> RowGrid:
    """The grids of all candidates, one after the other: [candidates * rows, 1]."""
    rows = len(grid.scale)
    repeated = mapped(grid, lambda part: part.repeat(len(factors), 1))
    return repeated.scaled(factors.expand(-1, rows).reshape(-1, 1))


@dataclass(frozen=True)
class Moments:
    """What the score of a weight depends on: S and L of the module's formulas."""

    second: Float[Tensor, "channels channels"]
    slope: Float[Tensor, "out channels"]


def moments(layer: Layer, inputs: Float[Tensor, "n channels"], rounded: Float[Tensor, "n channels"]) -> Moments:
    """Sum over the rows of an input and of what it is rounded to."""
    out, channels = layer.weight.shape
    second = inputs.new_zeros(channels, channels)
    narrow = channels > 2 * out  # then products of few outputs are cheaper than those of all pairs of channels
    slope = inputs.new_zeros(out if narrow else channels, channels)
    pieces = (part.split(PIECE_ROWS) for part in (inputs, rounded, layer.rows))
    for x, x_hat, importance in zip(*pieces, strict=True):
        weighted = x_hat * importance.unsqueeze(1)
        second.addmm_(x_hat.T, weighted)
        if inputs is not rounded:
            moved = x_hat - x
            slope.addmm_((layer.weight @ moved.T) if narrow else moved.T, weighted)
    return Moments(second, slope if narrow else layer.weight @ slope)


def search_weight(
    layer: Layer,
    known: Moments,
    start: RowGrid,
    spec: QuantSpec,
    tried: Float[Tensor, "candidates #rows"],
    current: Float[Tensor, "rows 1"],
) -> Float[Tensor, "candidates rows"]:
    """The candidates of each row of `as_rows(weight, spec)`, best first.

    Args:
        layer: of which weight.
        known: of its input.
        start: the grid that is multiplied.
        spec: of the weight.
        tried: the candidates, for all rows or for each.
        current: the factors so far, which groups of a row that were not reached yet have.
    """
    out, channels = layer.weight.shape
    size = spec.group_size or channels

    def table(part: Tensor) -> Tensor:  # [..., rows] -> [..., out, groups]; a tensor's one row is every channel's
        return part.unflatten(-1, (-1, channels // size)).expand(*part.shape[:-1], out, -1)

    found = table(current[:, 0]).clone()
    candidates = table(tried.expand(-1, len(current)))
    ranked = torch.empty_like(candidates, memory_format=torch.contiguous_format)
    change = torch.empty_like(layer.weight)
    grids = [mapped(start, lambda part, k=k: table(part[:, 0])[:, [k]]) for k in range(channels // size)]
    groups = [slice(first, first + size) for first in range(0, channels, size)]
    for k, group in enumerate(groups):
        own = layer.weight[:, group]
        change[:, group] = own - grids[k].scaled(found[:, [k]]).round(own)
    for k, group in enumerate(groups):
        own, second = layer.weight[:, group], known.second[group, group]
        slope = change @ known.second[:, group] - change[:, group] @ second - known.slope[:, group]
        errors = _weight_errors(own, second, slope, grids[k], candidates[..., k])
        if spec.granularity == "tensor":
            errors = (errors @ layer.channels).unsqueeze(1).expand(-1, out)
        ranked[..., k] = candidates[..., k].gather(0, errors.argsort(stable=True, dim=0))
        found[:, k] = ranked[0, :, k]
        change[:, group] = own - grids[k].scaled(found[:, [k]]).round(own)
    return ranked.flatten(1) if spec.granularity != "tensor" else ranked[:, 0]


def _weight_errors(
    weight: Float[Tensor, "out group"], second: Tensor, slope: Tensor, start: RowGrid, tried: Tensor
) -> Float[Tensor, "candidates out"]:
    """The score of each candidate [candidates, out] for a group of columns, by output channel, up to a constant."""
    errors = []
    for some in tried.split(max(1, chunk_values(weight.device) // weight.numel())):
        rounded = of_candidates(start, some).round(weight.repeat(len(some), 1))
        change = (weight - rounded.view(len(some), *weight.shape)).flatten(0, 1)
        curved = (change @ second).view(len(some), *weight.shape).add_(slope, alpha=2)
        errors.append(curved.mul_(change.view_as(curved)).sum(-1))
    return torch.cat(errors)
