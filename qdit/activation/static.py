"""Static activation quantization: one grid per tensor, or per group of timesteps, calibrated on full-precision inputs.

With `activation/range=minmax` it is the "MinMax" or "RTN" baseline of the papers; Q-Diffusion uses it so, and PTQ4DiT
with `percentile_mse`. Left out: exponential moving averages of batch ranges, which would only make the result depend on
the order of the batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from qdit.activation.regions import SidedInputs
from qdit.activation.time import EqualGroups, TimeGroups
from qdit.errors import UserError
from qdit.nn.clock import Clock
from qdit.nn.quantizers import uniform_quantizer
from qdit.quant.affine import affine
from qdit.quant.ranges import Range
from qdit.quant.spec import Granularity, Grid, QuantSpec
from qdit.quant.time_groups import Groups


@dataclass(frozen=True, kw_only=True)
class StaticActivation:
    """Static per-tensor activation quantization.

    Args:
        granularity, grid: see `QuantSpec`; `granularity` must be `tensor`.
        range: the rule that finds the range from the calibration values.
        group_size: must be null; here because every option of the group has the same keys.
        regions: inputs with two regions; none by default.
        time: groups of timesteps with ranges of their own; one by default.

    Raises:
        UserError: another granularity, or a group size.
    """

    granularity: Granularity
    grid: Grid
    range: Range
    group_size: int | None = None
    regions: SidedInputs = field(default_factory=SidedInputs)
    time: TimeGroups = field(default_factory=EqualGroups)
    needs_ranges = True

    def __post_init__(self) -> None:
        if self.granularity != "tensor" or self.group_size is not None:
            raise UserError(
                f"activation: static ranges are per tensor, not granularity={self.granularity!r} with "
                f"group_size={self.group_size}; use activation=token or activation=group for finer grids"
            )

    def spec(self, bits: int) -> QuantSpec:
        """The `QuantSpec` of an input at `bits`."""
        time_groups = self.time.count("inputs")
        return QuantSpec(bits=bits, granularity="tensor", grid=self.grid, dynamic=False, time_groups=time_groups)

    def quantizer(self, spec: QuantSpec, values: Sequence[Tensor] | None, groups: Groups, clock: Clock) -> nn.Module:
        """The module that quantizes a site's input, calibrated on `values`, [n] for each group of timesteps.

        Raises:
            UserError: there are no values, or they do not suit two regions.
        """
        if values is None:
            raise UserError("activation=tensor has static ranges and needs calibration data; use calibration=uniform")
        if spec.grid == "two_sided":
            return self.regions.quantizer(spec, values, self.range, groups, clock)
        grids = [affine(*self.range(sample.reshape(1, -1), spec), spec) for sample in values]
        return uniform_quantizer(spec, grids, groups, clock)
