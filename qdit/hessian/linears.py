"""The alternating search for one input and the layers that read it: first their weights, then the input's grid.

A round searches each side while the other is fixed at its current grid. The search ends early when nothing changes any
more. Rounds after the first compare only the best candidates of the first one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qdit.fit import Fit
from qdit.hessian.grids import book_of, candidates, groups_of, numbers_of, searched
from qdit.hessian.pearson import Pearson, alike_weights, judge_of
from qdit.hessian.products import Moving, Other, best, reached, shortlist, summed
from qdit.hessian.rule import Hessian, rules
from qdit.hessian.scores import Layer, moments, search_weight
from qdit.model.base import Site
from qdit.quant.grid import RowGrid
from qdit.quant.spec import QuantSpec, as_rows

KEPT = 16  # candidates of a weight that later rounds compare again

Found = dict[str, Tensor]
"""Of weights what steps are multiplied by: `<site>.weight` [rows, 1]. Numbers of the code-books of static inputs and of
operands: `<first reader>.input` and `<site>.operand` [cells, numbers]."""


@dataclass(frozen=True)
class Reading:
    """An input and the layers that read (consume) it."""

    readers: Sequence[Site]
    layers: Sequence[Layer]
    inputs: Float[Tensor, "n channels"]
    """In full precision, in random order."""
    timesteps: Int[Tensor, " n"]


@dataclass
class _Weight:
    """A weight that is quantized; `factors` multiply the scales of the grid `start`."""

    layer: Layer
    spec: QuantSpec
    start: RowGrid
    factors: Float[Tensor, "rows 1"]
    tried: Float[Tensor, "candidates #rows"]

    def rounded(self) -> Float[Tensor, "out channels"]:
        """The weight on its current grid."""
        rows = as_rows(self.layer.weight, self.spec)
        return self.start.scaled(self.factors).round(rows).view(self.layer.weight.shape)


def reader(layer: Layer, rounded: Float[Tensor, "out channels"]) -> Other:
    """A layer as the other operand of its input's product; `rounded` is its weight on its grid."""
    root = layer.channels.sqrt().unsqueeze(1)
    return Other((rounded * root).T, ((layer.weight - rounded) * root).T, layer.rows.view(-1, 1, 1))


class Alternation:
    """The search of a reading.

    Args:
        fit: whose ranges.
        reading: what is searched.
        module: rounds the input, None if nothing does.
        rounds: at most.
    """

    def __init__(self, fit: Fit, reading: Reading, module: nn.Module | None, rounds: int) -> None:
        self.reading, self.rounds, self.dynamic, self.clock = reading, rounds, module, fit.model.clock
        self.weight_rule, self.input_rule, _ = rules(fit.recipe)
        self.module = searched(module)
        self.numbers = torch.empty(0)
        if self.module is not None:
            groups = groups_of(self.module, reading.timesteps)
            self.moving = Moving(reading.inputs.unsqueeze(1), book_of(self.module), groups)
            self.numbers = numbers_of(self.module)
            self.tried: Float[Tensor, "candidates cells numbers"] | None = None
        self.weights: dict[str, _Weight] = {}
        for site, layer in zip(reading.readers, reading.layers, strict=True):
            if fit.rounds(site):
                start = fit.grid(site)
                tried = self.weight_rule.factors() if self.weight_rule is not None else torch.ones(1)
                spec, one = fit.weight_spec(site), torch.ones_like(start.scale)
                self.weights[site.name] = _Weight(layer, spec, start, one, tried.to(one).unsqueeze(1))

    def run(self) -> Found:
        """The best grids after the last round."""
        grouped = any(weight.spec.granularity == "group" for weight in self.weights.values())
        for _ in range(self.rounds):
            before, moved = self.numbers, False
            if self.weight_rule is not None:
                moved = self.search_weights()
            if self.input_rule is not None and self.module is not None:
                self.numbers = self.search_input(self.input_rule)
            # Rows of a weight do not depend on each other: the same input would give the same weights again.
            settled = torch.equal(self.numbers, before) and not (grouped and moved)
            if self.weight_rule is None or settled:
                break
        found: Found = {}
        if self.weight_rule is not None:
            found |= {f"{name}.weight": weight.factors for name, weight in self.weights.items()}
        if self.input_rule is not None and self.module is not None:
            found[f"{self.reading.readers[0].name}.input"] = self.numbers
        return found

    def search_weights(self) -> bool:
        """Search all weights; whether one changed."""
        inputs, rounded = self.reading.inputs, self.rounded_inputs()
        moved = False
        for weight in self.weights.values():
            known = moments(weight.layer, inputs, rounded)
            if isinstance(self.weight_rule, Pearson):
                ranked = alike_weights(weight.layer, known, (inputs, rounded), weight.start, weight.tried)
            else:
                ranked = search_weight(weight.layer, known, weight.start, weight.spec, weight.tried, weight.factors)
            found = ranked[0].unsqueeze(1)
            moved |= not torch.equal(found, weight.factors)
            weight.factors = found
            if len(weight.tried) > KEPT:
                weight.tried = ranked[:KEPT]
        return moved

    def search_input(self, rule: Hessian) -> Float[Tensor, "cells numbers"]:
        """New numbers (quantization parameters) of the input's code-book."""
        named = zip(self.reading.readers, self.reading.layers, strict=True)
        others = [
            reader(layer, self.weights[site.name].rounded() if site.name in self.weights else layer.weight)
            for site, layer in named
        ]
        judge, squared = judge_of(rule), not isinstance(rule, Pearson)  # only squares may be those of other columns
        if self.tried is None:
            table = candidates(self.moving.book, self.numbers, rule)
            ranking = [summed(other, rule.seed + n) for n, other in enumerate(others)] if squared else others
            self.tried = shortlist(self.moving, ranking, table, judge)
        return best(self.moving, [reached(o) for o in others] if squared else others, self.tried, judge)

    def rounded_inputs(self) -> Float[Tensor, "n channels"]:
        """The input on its current grid."""
        if self.module is not None:
            return self.moving.rounded(self.numbers.unsqueeze(0))[:, 0, 0]
        if self.dynamic is None:
            return self.reading.inputs
        with self.clock.showing(self.reading.timesteps):
            return self.dynamic(self.reading.inputs)
