"""Weights [out, in] on a grid of any format, per output channel (`row`), per group of input channels, or per tensor."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from qdit.checked import NEWER, Checked, Newer
from qdit.model.base import Site
from qdit.model.roles import chosen, is_role, meant
from qdit.quant.grid import RowGrid, covering, shared
from qdit.quant.named import LEVEL_BITS, at_bits, owned
from qdit.quant.ranges import Range, check_rule, range_of
from qdit.quant.spec import Granularity, GridName, LevelGrid, QuantSpec, Scale, as_rows


@dataclass(frozen=True, kw_only=True, repr=False)
class WeightGrid(Newer, Checked):
    """Granularity, grid and range rule of every quantized weight.

    Args:
        granularity, group_size, scale: see `QuantSpec`.
        grid: see `QuantSpec`; `float` is the usual floating-point format of the bits.
        range: the rule that finds each row's range (clipping).
        by_role: other grids for some roles (`qdit.model.roles.ROLES`), and for those that are like them in other
            families, where the weight has as many bits as the grid and no scales of another dtype.

    Raises:
        UserError: a value is none of those, or the range rule does not go with a grid.
    """

    granularity: Granularity
    grid: GridName
    range: Range
    group_size: int | None = None
    scale: Scale | None = field(default=None, metadata=NEWER)
    by_role: dict[str, LevelGrid] = field(default_factory=dict, metadata=NEWER)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rule(self.range, self.grid, *self.by_role.values())

    def problems(self, sites: Sequence[Site]) -> list[str]:
        """Roles that no model has, one sentence each."""
        known = ", ".join(sorted({site.role for site in sites}))
        return [f"weight.by_role has {r!r}; this model has {known}" for r in self.by_role if not is_role(r)]

    def in_format(self, name: str) -> "WeightGrid":
        """The same in a named format (`qdit.quant.named`), for all roles.

        Raises:
            UserError: the range rule does not go with it.
        """
        return replace(self, by_role={}, **owned(vars(self), name))

    def spec(self, bits: int) -> QuantSpec:
        """The `QuantSpec` of a weight at `bits`."""
        rows = {"granularity": self.granularity, "group_size": self.group_size}
        return QuantSpec(bits=bits, grid=at_bits(self.grid, bits), scale=self.scale, dynamic=False, **rows)

    def at(self, role: str, spec: QuantSpec | None) -> QuantSpec | None:
        """The spec of a site with a role, where others have `spec`."""
        named = [name for match in (chosen, meant) for name in self.by_role if match(role, [name])]
        own = self.by_role[named[0]] if named else None
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
        whole = shared(rows, spec) if whole is None else whole
        return covering(rows, *range_of(self.range, rows, spec, whole), spec, whole)
