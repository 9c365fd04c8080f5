"""The rounds of the search for one input and the layers that read it: weights with the input as it is, then the input.

It ends before its last round when nothing changes any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qdit.hessian.inputs import input_grid
from qdit.hessian.rule import Hessian, rules
from qdit.hessian.scores import Layer, moments, scaled, search_input, search_weight
from qdit.model.base import Site
from qdit.quant.affine import Affine, round_to_grid
from qdit.quant.spec import QuantSpec, as_rows

if TYPE_CHECKING:
    from qdit.fit import Fit

Factors = dict[str, Tensor]
"""What steps are multiplied by: `<site>.weight` [rows, 1], `<first reader>.input` [groups of timesteps]."""


@dataclass(frozen=True)
class Reading:
    """An input and the layers that read it."""

    readers: Sequence[Site]
    layers: Sequence[Layer]
    inputs: Float[Tensor, "n channels"]
    """In full precision, in random order."""
    timesteps: Int[Tensor, " n"]


@dataclass
class _Weight:
    """A weight that is rounded; `factors` multiply the steps of `start`."""

    layer: Layer
    spec: QuantSpec
    start: Affine
    factors: Float[Tensor, "rows 1"]

    def rounded(self) -> Float[Tensor, "out channels"]:
        """On its grid as it is now."""
        rows = as_rows(self.layer.weight, self.spec)
        return round_to_grid(rows, scaled(self.start, self.factors)).view(self.layer.weight.shape)


class Alternation:
    """The search of a reading.

    Args:
        fit: whose ranges.
        reading: what is searched.
        module: rounds the input, None if nothing does.
        rounds: at most.
    """

    def __init__(self, fit: "Fit", reading: Reading, module: nn.Module | None, rounds: int) -> None:
        self.reading, self.module, self.rounds = reading, module, rounds
        self.weight_rule, self.input_rule = rules(fit.recipe)
        self.grid = input_grid(module, reading.timesteps)
        self.input_factors = reading.inputs.new_ones(len(self.grid.numbers) if self.grid is not None else 0)
        self.weights: dict[str, _Weight] = {}
        for site, layer in zip(reading.readers, reading.layers, strict=True):
            if fit.rounds(site):
                start = fit.grid(site)
                self.weights[site.name] = _Weight(layer, fit.weight_spec(site), start, torch.ones_like(start.scale))

    def run(self) -> Factors:
        """The factors after the last round."""
        grouped = any(weight.spec.granularity == "group" for weight in self.weights.values())
        for _ in range(self.rounds):
            before, moved = self.input_factors, False
            if self.weight_rule is not None:
                moved = self.search_weights(self.weight_rule)
            if self.input_rule is not None and self.grid is not None:
                self.input_factors = self.search_input(self.input_rule)
            # Rows of a weight do not depend on each other: the same input would give the same weights again.
            settled = torch.equal(self.input_factors, before) and not (grouped and moved)
            if self.weight_rule is None or settled:
                break
        found: Factors = {}
        if self.weight_rule is not None:
            found |= {f"{name}.weight": weight.factors for name, weight in self.weights.items()}
        if self.input_rule is not None and self.grid is not None:
            found[f"{self.reading.readers[0].name}.input"] = self.input_factors
        return found

    def search_weights(self, rule: Hessian) -> bool:
        """Search all weights; whether one changed."""
        inputs, rounded = self.reading.inputs, self.rounded_inputs()
        moved = False
        for weight in self.weights.values():
            known, factors = moments(weight.layer, inputs, rounded), rule.factors().to(inputs)
            found = search_weight(weight.layer, known, weight.start, weight.spec, factors, weight.factors)
            moved |= not torch.equal(found, weight.factors)
            weight.factors = found
        return moved

    def search_input(self, rule: Hessian) -> Float[Tensor, " groups"]:
        """New factors of the input."""
        assert self.grid is not None
        named = zip(self.reading.readers, self.reading.layers, strict=True)
        weights = [self.weights[s.name].rounded() if s.name in self.weights else layer.weight for s, layer in named]
        inputs, factors = self.reading.inputs, rule.factors().to(self.reading.inputs)
        return search_input(self.reading.layers, weights, inputs, self.grid, factors, self.input_factors)

    def rounded_inputs(self) -> Float[Tensor, "n channels"]:
        """The input on its grid as it is now."""
        if self.grid is not None:
            return self.grid.rounded(self.reading.inputs, self.input_factors.unsqueeze(0))[0]
        return self.module(self.reading.inputs) if self.module is not None else self.reading.inputs
