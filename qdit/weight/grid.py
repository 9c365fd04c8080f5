"""Weights [out, in] on a grid of any format, per output channel (`row`), per group of input channels, or per tensor."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from qdit.quant.grid import RowGrid, covering
from qdit.quant.named import LEVEL_BITS, at_bits
from qdit.quant.ranges import Range
from qdit.quant.spec import Granularity, GridName, LevelGrid, QuantSpec, Scale, as_rows


@dataclass(frozen=True, kw_only=True)
class WeightGrid:
    """Granularity, grid and range rule of every quantized weight.

    Args:
        granularity, group_size, scale: see `QuantSpec`.
        grid: see `QuantSpec`; `float` is the usual floating-point format of the bits.
        range: the rule that finds each row's range (clipping).
        by_role: other grids for some roles, where the weight has as many bits as they have.
    """

    granularity: Granularity
    grid: GridName
    range: Range
    group_size: int | None = None
    scale: Scale | None = None
    by_role: dict[str, LevelGrid] = field(default_factory=dict)

    def spec(self, bits: int) -> QuantSpec:
        """The `QuantSpec` of a weight at `bits`."""
        rows = {"granularity": self.granularity, "group_size": self.group_size}
        return QuantSpec(bits=bits, grid=at_bits(self.grid, bits), scale=self.scale, dynamic=False, **rows)

    def at(self, role: str, spec: QuantSpec | None) -> QuantSpec | None:
        """The spec of a site with a role, where others have `spec`."""
        own = self.by_role.get(role)
        if own is None or spec is None or spec.scale is not None or LEVEL_BITS.get(own, spec.bits) != spec.bits:
            return spec
        return replace(spec, grid=own)

    def fit(self, weight: Tensor, spec: QuantSpec, whole: Tensor | None = None) -> RowGrid:
        """The grid of each row of `as_rows(weight, spec)`, for a weight [out, in].

        `whole` is what all scales have in common, if it is known already: the weight then is a part of another.

        Raises:
            UserError: the group size does not divide the input channels.
        """
        rows = as_rows(weight, spec).float()
        return covering(rows, *self.range(rows, spec), spec, whole=whole)
