"""The quantizer of inputs whose channels are in clusters, each with a grid of its own (DGQ, arXiv 2501.04304)."""

from torch import Tensor

from qdit.nn.by_channel import ByChannelQuantizer


class ClusterQuantizer(ByChannelQuantizer):
    """Round an input [B, …, channels] to the grid of each channel's cluster.

    Its numbers [groups, clusters, 2] are scale and zero point of each cluster, and the channels' own their clusters. An
    integer product would need the channels in the order of their clusters, and a sum for each.
    """

    own = "members"
    members: Tensor

    def grids(self) -> tuple[Tensor, Tensor]:
        """See `ByChannelQuantizer`."""
        steps, zero_point = self.numbers.mT.take_along_dim(self.members.long().unsqueeze(1), 2).unbind(1)
        return steps, zero_point  # each contiguous along the channels: with a stride of 2 rounding took twice as long
