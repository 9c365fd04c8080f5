"""The base of static quantizers that tell the channels of some inputs apart, by a number that each channel has."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, get_args

from torch import nn

from qdit.activation.static import StaticActivation
from qdit.calibration.reservoir import Sampled
from qdit.checked import Checked
from qdit.errors import UserError
from qdit.model.roles import ROLES, is_role, meant
from qdit.nn.clock import Clock
from qdit.quant.spec import BookGrid, Grid, QuantSpec
from qdit.quant.time_groups import Groups


class ByChannel(StaticActivation, Checked, ABC):
    """Static quantization by channel at some inputs; other inputs have one grid.

    It has no fields of its own: `repr`, which is hashed, has those of each subclass in their order.

    Raises:
        UserError: see `StaticActivation`; or the grid is not of integers, or a value or a role is unknown.
    """

    kind: ClassVar[BookGrid]
    """Of the specs, and the option's name."""
    does: ClassVar[str]
    """What it does with integers."""
    count: ClassVar[str]
    """The field, here and in specs, that says how much channels may differ."""
    plain: ClassVar[int]
    """The count at which all channels are alike."""
    where: ClassVar[str]
    """The field of the roles whose inputs are quantized by channel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Checked.__post_init__(self)
        if self.grid not in get_args(Grid):
            raise UserError(
                f"activation={self.kind} {self.does} integers, and grid={self.grid!r} has none; use one of "
                f"{', '.join(get_args(Grid))}, or activation=tensor"
            )
        if unknown := [name for name in getattr(self, self.where) if not is_role(name)]:
            raise UserError(f"activation.{self.where} has roles {', '.join(unknown)}; choose from {', '.join(ROLES)}")

    def at(self, role: str, spec: QuantSpec | None) -> QuantSpec | None:
        """See `StaticActivation`; two regions come first."""
        own, count = super().at(role, spec), getattr(self, self.count)
        if own is None or own is not spec or count == self.plain or not meant(role, getattr(self, self.where)):
            return own
        base = None if own.grid == "asymmetric" else own.grid
        return replace(own, grid=self.kind, base=base, **{self.count: count})

    def quantizer(self, spec: QuantSpec, values: Sequence[Any] | None, groups: Groups, clock: Clock) -> nn.Module:
        """See `StaticActivation`; `values` are a `Sampled` for each group of timesteps where channels are told apart.

        Raises:
            UserError: there are no values.
        """
        if spec.grid != self.kind or values is None:
            return super().quantizer(spec, values, groups, clock)
        return self.calibrated(spec, values, groups, clock)

    @abstractmethod
    def calibrated(self, spec: QuantSpec, samples: Sequence[Sampled], groups: Groups, clock: Clock) -> nn.Module:
        """The module that quantizes by channel, calibrated on a sample for each group of timesteps."""
