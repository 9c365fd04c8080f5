"""The base of static quantizers of inputs whose channels have steps of their own."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float, Integer
from torch import Tensor, nn

from qdit.nn.clock import Clock
from qdit.quant.affine import nearest
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import Groups, group_of


class ByChannelQuantizer(nn.Module, ABC):
    """Round an input [B, …, channels] to a grid for each channel.

    Args:
        spec: bits and kind.
        codes: the lowest and the highest code.
        numbers: of which grids are made, for each group.
        channels: what says which grid each channel has, uint8; the buffer `own`.
        groups: of timesteps.
        clock: shows the timesteps; with one group it is not read.
    """

    own: ClassVar[str]
    """The name of the buffer of channels."""
    by_rows = True
    has_codes = False
    numbers: Tensor
    edges: Tensor

    def __init__(
        self,
        spec: QuantSpec,
        codes: tuple[int, int],
        numbers: Float[Tensor, "groups *numbers"],
        channels: Integer[Tensor, "groups channels"],
        groups: Groups,
        clock: Clock,
    ) -> None:
        super().__init__()
        self.spec, self.clock, (self.low, self.high) = spec, clock, codes
        self.register_buffer("numbers", numbers.float())
        self.register_buffer(self.own, channels)
        self.register_buffer("edges", groups.tensor())

    @abstractmethod
    def grids(self) -> tuple[Float[Tensor, "groups channels"], Float[Tensor, "groups #channels"]]:
        """Scale and zero point of each channel, for each group."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        steps, zero_point = self.grids()
        if len(self.edges):
            now = group_of(self.clock.read(len(x)), self.edges)
            steps, zero_point = steps[now], zero_point[now]
        shape = len(steps), *[1] * (x.ndim - 2), -1
        return nearest(x.float(), steps.view(shape), zero_point.view(shape), self.low, self.high).to(x.dtype)
