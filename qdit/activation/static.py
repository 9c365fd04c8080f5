"""Static activations: one grid per tensor, calibrated on inputs of the full-precision model.

The rule of the papers' "MinMax" and "RTN" baselines; PTQ4DiT uses it with `activation/range=percentile` or `mse`.
Left out: exponential moving averages of batch ranges, which only add a dependence on the order of the batches.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from qdit.errors import UserError
from qdit.quant.affine import Affine, affine, fake_quantize
from qdit.quant.ranges import Range
from qdit.quant.spec import Granularity, Grid, QuantSpec


class StaticQuantizer(nn.Module):
    """Round an input to one calibrated grid."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, spec: QuantSpec, grid: Affine) -> None:
        super().__init__()
        self.spec, self.low, self.high = spec, grid.low, grid.high
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return fake_quantize(x, self.spec, Affine(self.scale, self.zero_point, self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class StaticActivation:
    """Static per-tensor activation quantization.

    Args:
        granularity, grid: see `QuantSpec`; `granularity` must be `tensor`.
        range: the rule that finds the range from the calibration values.
        group_size: must be null; here because every option of the group has the same keys.
    """

    granularity: Granularity
    grid: Grid
    range: Range
    group_size: int | None = None
    needs_ranges = True

    def __post_init__(self) -> None:
        if self.granularity != "tensor" or self.group_size is not None:
            raise UserError(
                f"activation: static ranges are per tensor, not granularity={self.granularity!r} with "
                f"group_size={self.group_size}; use activation=token or activation=group for finer grids"
            )

    def spec(self, bits: int) -> QuantSpec:
        """The `QuantSpec` of an input at `bits`."""
        return QuantSpec(bits=bits, granularity="tensor", grid=self.grid, dynamic=False)

    def quantizer(self, spec: QuantSpec, values: Tensor | None) -> nn.Module:
        """The module that quantizes a site's input, calibrated on `values` [n]."""
        if values is None:
            raise UserError("activation=tensor has static ranges and needs calibration data; use calibration=uniform")
        rows = values.reshape(1, -1)
        return StaticQuantizer(spec, affine(*self.range(rows, spec), spec))
