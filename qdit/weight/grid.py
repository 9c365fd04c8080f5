"""Weights [out, in] on a uniform grid, per output channel (`row`), per group of input channels, or per tensor."""

from dataclasses import dataclass

from torch import Tensor

from qdit.quant.affine import Affine, affine
from qdit.quant.ranges import Range
from qdit.quant.spec import Granularity, Grid, QuantSpec, as_rows


@dataclass(frozen=True, kw_only=True)
class WeightGrid:
    """Granularity, grid and range rule of every quantized weight.

    Args:
        granularity, group_size, grid: see `QuantSpec`.
        range: the rule that finds each row's range (clipping).
    """

    granularity: Granularity
    grid: Grid
    range: Range
    group_size: int | None = None

    def spec(self, bits: int) -> QuantSpec:
        """The `QuantSpec` of a weight at `bits`."""
        return QuantSpec(
            bits=bits, granularity=self.granularity, group_size=self.group_size, grid=self.grid, dynamic=False
        )

    def fit(self, weight: Tensor, spec: QuantSpec) -> Affine:
        """The grid of each row of `as_rows(weight, spec)`, for a weight [out, in].

        Raises:
            UserError: the group size does not divide the input channels.
        """
        rows = as_rows(weight, spec).float()
        return affine(*self.range(rows, spec), spec)
