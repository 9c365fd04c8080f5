"""Static activation quantization: one grid per tensor, or per group of timesteps, calibrated on full-precision inputs.

With `activation/range=minmax` it is the "MinMax" or "RTN" baseline of the papers; Q-Diffusion uses it so, and PTQ4DiT
with `percentile_mse`. Left out: exponential moving averages of batch ranges, which would only make the result depend on
the order of the batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from qdit.activation.regions import SidedInputs
from qdit.activation.time import EqualGroups, TimeGroups
from qdit.checked import NEWER, Newer
from qdit.errors import UserError
from qdit.nn.clock import Clock
from qdit.nn.quantizers import quantizer_of
from qdit.quant.grid import covering
from qdit.quant.named import at_bits, at_run_time, owned
from qdit.quant.ranges import Range, check_rule
from qdit.quant.spec import Columns, Granularity, GridName, QuantSpec, Scale
from qdit.quant.time_groups import Groups


@dataclass(frozen=True, kw_only=True, repr=False)
class StaticActivation(Newer):
    """Static per-tensor activation quantization.

    Args:
        granularity, grid: see `QuantSpec`; `granularity` must be `tensor`. `float` is the usual floating-point format.
        range: the rule that finds the range from the calibration values.
        group_size, scale: must be null; here because every option of the group has the same keys.
        columns: of inputs that are two side by side (`Site.second`), whether these have grids of their own: `own`, or
            `joined`.
        regions: inputs with two regions; none by default.
        time: groups of timesteps with ranges of their own; one by default.

    Raises:
        UserError: another granularity, a group size, a scale, or a range rule that does not go with the grid.
    """

    granularity: Granularity
    grid: GridName
    range: Range
    group_size: int | None = None
    scale: Scale | None = field(default=None, metadata=NEWER)
    columns: Columns = field(default="joined", metadata=NEWER)
    regions: SidedInputs = field(default_factory=SidedInputs)
    time: TimeGroups = field(default_factory=EqualGroups)
    needs_ranges = True

    def __post_init__(self) -> None:
        if self.granularity != "tensor" or self.group_size is not None:
            raise UserError(
                f"activation: static ranges are per tensor, not granularity={self.granularity!r} with "
                f"group_size={self.group_size}; use activation=token or activation=group for finer grids"
            )
        if self.scale is not None:
            raise UserError(
                f"activation: scale={self.scale} is found at run time, for each block; static ranges have scales in 16 "
                "bits (scale=null). Use activation=token for blocks, or bits=fp8 for static ranges"
            )
        check_rule(self.range, self.grid)

    def in_format(self, name: str) -> "StaticActivation":
        """The same in a named format (`qdit.quant.named`).

        Raises:
            UserError: the format finds its scales at run time, or some inputs have two regions.
        """
        advice = "activation=token, or bits=fp8, which goes with static ranges"
        if problems := self.regions.misfits(name) + at_run_time(name, "activation", advice):
            raise UserError(*problems)
        return replace(self, **owned(vars(self), name))

    def spec(self, bits: int) -> QuantSpec:
        """The `QuantSpec` of an input at `bits`."""
        grid, time_groups = at_bits(self.grid, bits), self.time.count("inputs")
        return QuantSpec(bits=bits, granularity="tensor", grid=grid, dynamic=False, time_groups=time_groups)

    def at(self, role: str, spec: QuantSpec | None) -> QuantSpec | None:
        """The spec of a site with a role, where others have `spec`."""
        return self.regions.at(role, spec, self.time)

    def quantizer(self, spec: QuantSpec, values: Sequence[Tensor] | None, groups: Groups, clock: Clock) -> nn.Module:
        """The module that quantizes a site's input, calibrated on `values`, [n] for each group of timesteps.

        Raises:
            UserError: there are no values, or they do not suit two regions.
        """
        if values is None:
            raise UserError("activation=tensor has static ranges and needs calibration data; use calibration=uniform")
        if spec.grid == "two_sided":
            return self.regions.quantizer(spec, values, self.range, groups, clock)
        rows = [sample.reshape(1, -1) for sample in values]
        grids = [covering(row, *self.range(row, spec), spec) for row in rows]
        return quantizer_of(spec, grids, groups, clock)
