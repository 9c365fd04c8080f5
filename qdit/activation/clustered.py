"""Clusters of channels, each with a static range of its own (DGQ, ICLR 2025, arXiv 2501.04304).

The channels of an input are divided by k-means over their (minimum, maximum) into a few clusters, and all channels of a
cluster have one grid. Unlike groups of neighbouring channels (`activation=group`), clusters hold what is alike; unlike
these the ranges are static. A permutation of the channels, which adaLN's rows and the readers' columns could absorb,
would make clusters neighbours for an integer kernel; the ledger counts each channel's cluster number instead.

Not here: DGQ chooses between channels and tokens, whichever spread further, input by input (tokens of a static place
are clustered alike); and its cross-attention keeps the first token apart and has powers of two at the run-time maximum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from jaxtyping import Float, Int
from torch import Tensor, nn

from qdit.activation.by_channel import ByChannel
from qdit.calibration.reservoir import Sampled
from qdit.errors import UserError
from qdit.nn.clock import Clock
from qdit.nn.clusters import ClusterQuantizer
from qdit.quant.affine import Affine, affine, nearest
from qdit.quant.ranges import MinMax
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import Groups

ROUNDS = 100  # of k-means, at most


def clusters_of(ends: Float[Tensor, "*many channels 2"], count: int) -> Int[Tensor, "*many channels"]:
    """The cluster of each channel: k-means over (minimum, maximum), which starts from channels spread by their width.

    >>> clusters_of(torch.tensor([[-1.0, 1.0], [-9.0, 8.0], [-1.2, 1.0], [-8.0, 9.0]]), 2)
    tensor([0, 1, 0, 1])
    """
    ends = ends.double()
    channels = ends.shape[-2]
    if channels <= count:
        return torch.arange(channels, device=ends.device).expand(ends.shape[:-1])
    order = (ends[..., 1] - ends[..., 0]).argsort(dim=-1, stable=True)
    spread = ((torch.arange(count, device=ends.device) + 0.5) * channels / count).long()
    centres = ends.take_along_dim(order[..., spread].unsqueeze(-1), -2)
    own = torch.cdist(ends, centres).argmin(-1)
    for _ in range(ROUNDS):
        member = F.one_hot(own, count).double()
        sizes = member.sum(-2).unsqueeze(-1)
        centres = torch.where(sizes > 0, member.mT @ ends / sizes.clamp(min=1), centres)
        before, own = own, torch.cdist(ends, centres).argmin(-1)
        if torch.equal(own, before):
            break
    return own


def cluster_grids(
    ends: Float[Tensor, "many channels 2"], own: Int[Tensor, "many channels"], count: int, spec: QuantSpec
) -> Affine:
    """The grids of `many` times `count` clusters, from the least to the greatest value of their channels."""
    member = F.one_hot(own, count).bool()
    lo, hi = (ends[..., end].unsqueeze(-1) for end in (0, 1))
    lowest = torch.where(member, lo, torch.inf).amin(-2)
    highest = torch.where(member, hi, -torch.inf).amax(-2)
    empty = ~member.any(-2)
    lowest, highest = (end.masked_fill(empty, 0.0).reshape(-1, 1) for end in (lowest, highest))
    return affine(lowest, highest, spec)


def rounded_by_cluster(
    x: Float[Tensor, "*many rows channels"], spec: QuantSpec, count: int
) -> Float[Tensor, "*many rows channels"]:
    """Matrices rounded as static inputs in clusters are that have just these values; arguments as `cluster_grids`."""
    flat = x.float().view(-1, *x.shape[-2:])
    ends = torch.stack(flat.aminmax(dim=1), -1)
    own = clusters_of(ends, count)
    grid = cluster_grids(ends, own, count, spec)
    steps, zero_point = (t.view(len(flat), count).gather(1, own).unsqueeze(1) for t in (grid.scale, grid.zero_point))
    return nearest(flat, steps, zero_point, grid.low, grid.high).to(x.dtype).view(x.shape)


@dataclass(frozen=True, kw_only=True, repr=False)
class Clustered(ByChannel):
    """Static quantization with a grid for each cluster of channels at some inputs; other inputs have one.

    Args:
        granularity, grid, range, group_size, scale, regions, time: see `StaticActivation`; `grid` is of integers, and
            `range` the minimum and maximum.
        clusters: of an input's channels; 1 is `StaticActivation`.
        clustered: roles of the layers whose inputs have clusters.

    Raises:
        UserError: see `StaticActivation`; or a value is out of range.
    """

    clusters: Annotated[int, Ge(1), Le(256)] = 8
    clustered: list[str] = field(default_factory=lambda: ["qkv", "attn_out", "ffn_up", "ffn_down"])
    kind, does, count, plain, where = "clustered", "rounds to", "clusters", 1, "clustered"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.range, MinMax):
            raise UserError(
                f"activation=clustered has the ranges that its clusters were made by, the minimum and maximum, and not "
                f"those of {type(self.range).__name__}; use activation/range=minmax, or activation=tensor"
            )

    def calibrated(self, spec: QuantSpec, samples: Sequence[Sampled], groups: Groups, clock: Clock) -> nn.Module:
        """See `ByChannel`."""
        ends = torch.stack([torch.stack(sample.values.aminmax(dim=1), -1) for sample in samples])
        own = clusters_of(ends, self.clusters)
        grid = cluster_grids(ends, own, self.clusters, self.spec(spec.bits))
        numbers = torch.cat([grid.scale, grid.zero_point], 1).view(len(ends), self.clusters, 2)
        return ClusterQuantizer(spec, (grid.low, grid.high), numbers, own.to(torch.uint8), groups, clock)
