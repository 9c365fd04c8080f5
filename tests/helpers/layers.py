"""Single quantized layers, on grids of their weights and of ranges that are given."""

import torch
from torch import nn

from qdit.nn.linear import QuantLinear
from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.affine import affine
from qdit.quant.grid import Rounded
from qdit.quant.spec import QuantSpec, as_rows

IN, OUT = 32, 24


def rounded(layer: nn.Module, **fields) -> QuantLinear:
    """A layer with a rounded weight and inputs as they are."""
    spec = QuantSpec(**{"bits": 8} | fields)
    weight = layer.weight.detach().flatten(1)
    rows = as_rows(weight, spec)
    return QuantLinear(layer, Rounded.of(weight, affine(rows.amin(-1, True), rows.amax(-1, True), spec), spec), None)


def static(bits: int = 8, grid: str = "asymmetric", lo: float = -1.5, hi: float = 2.5) -> StaticQuantizer:
    spec = QuantSpec(bits=bits, granularity="tensor", grid=grid, dynamic=False)  # pyright: ignore[reportArgumentType]
    return StaticQuantizer(spec, affine(torch.full((1, 1), lo), torch.full((1, 1), hi), spec))
