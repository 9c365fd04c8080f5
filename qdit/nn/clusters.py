"""The quantizer of inputs whose channels are in clusters, each with a grid of its own (DGQ, arXiv 2501.04304)."""

from jaxtyping import Float, Integer
from torch import Tensor, nn

from qdit.nn.clock import Clock
from qdit.quant.affine import nearest
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import Groups, group_of


class ClusterQuantizer(nn.Module):
    """Round an input [B, …, channels] to the grid of each channel's cluster.

    Args:
        spec: bits and kind.
        codes: the lowest and the highest code.
        numbers: scale and zero point of each cluster, for each group.
        members: the cluster of each channel, uint8.
        groups: of timesteps.
        clock: shows the timesteps; with one group it is not read.
    """

    by_rows = True
    has_codes = False
    """An integer product would need the channels in the order of their clusters, and a sum for each."""
    numbers: Tensor
    members: Tensor
    edges: Tensor

    def __init__(
        self,
        spec: QuantSpec,
        codes: tuple[int, int],
        numbers: Float[Tensor, "groups clusters 2"],
        members: Integer[Tensor, "groups channels"],
        groups: Groups,
        clock: Clock,
    ) -> None:
        super().__init__()
        self.spec, self.clock, (self.low, self.high) = spec, clock, codes
        self.register_buffer("numbers", numbers.float())
        self.register_buffer("members", members)
        self.register_buffer("edges", groups.tensor())

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        own = self.numbers.take_along_dim(self.members.long().unsqueeze(-1), 1)
        if len(self.edges):
            own = own[group_of(self.clock.read(len(x)), self.edges)]
        steps, zero_point = own.view(len(own), *[1] * (x.ndim - 2), -1, 2).unbind(-1)
        return nearest(x.float(), steps, zero_point, self.low, self.high).to(x.dtype)
