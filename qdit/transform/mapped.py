"""Layers whose channels are scaled and shifted by what is learned, and the block that they learn for.

Rounding counts as the identity in derivatives, and ranges do not: they follow what is learned, so that scales learn
through the steps of their grids.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qdit.calibration.blocks import Segment, Walk
from qdit.calibration.replay import Points, count
from qdit.calibration.streams import Part, Streams, parts_of, row_shares
from qdit.nn.linear import QuantLinear
from qdit.nn.patches import matrix
from qdit.nn.replace import replaced
from qdit.quant.affine import affine
from qdit.quant.spec import QuantSpec, as_rows


def rounded_straight(x: Float[Tensor, "*rows channels"], spec: QuantSpec) -> Float[Tensor, "*rows channels"]:
    """`x` on the grids of its own rows, with a gradient: that of the identity for rounding, and the steps' own."""
    if spec.is_identity:
        return x
    rows = as_rows(x, spec)
    grid = affine(rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True), spec)
    scaled = rows / grid.scale
    codes = scaled + (scaled.round() - scaled).detach()
    lowest, highest = grid.low - grid.zero_point, grid.high - grid.zero_point
    return (torch.minimum(torch.maximum(codes, lowest), highest) * grid.scale).view(x.shape)


class Channels:
    """s and δ of an input while they are learned.

    Args:
        s: where it starts, [channels].
        unit: of δ, [channels]: an iteration moves it by so much times the rate.
    """

    def __init__(self, s: Float[Tensor, " channels"], unit: Float[Tensor, " channels"]) -> None:
        self.unit = unit
        self.logarithm, self.moved = s.log().requires_grad_(), torch.zeros_like(s).requires_grad_()

    @property
    def s(self) -> Float[Tensor, " channels"]:
        """The scale."""
        return self.logarithm.exp()

    @property
    def shift(self) -> Float[Tensor, " channels"]:
        """δ."""
        return self.moved * self.unit

    def value(self) -> Float[Tensor, "2 channels"]:
        """Both, on the CPU in float32."""
        return torch.stack([self.s, self.shift]).detach().float().cpu()


class Mapped(nn.Module):
    """A layer that rounds as the recipe would, in the channels that are learned.

    Args:
        layer: a linear layer, or one that an earlier transform changed.
        channels: of its input, the same for all its readers.
        weight, x: how weight and input are rounded.
    """

    def __init__(self, layer: nn.Module, channels: Channels, weight: QuantSpec, x: QuantSpec) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple, as it is the network's, and no child
        self.channels, self.specs = channels, (weight, x)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        (layer,), s, shift = self.layer, self.channels.s, self.channels.shift
        changed = layer.quantizer(x) if isinstance(layer, QuantLinear) and layer.quantizer is not None else x
        weight = matrix(layer).to(s.dtype)
        inputs = rounded_straight((changed.to(s.dtype) - shift) / s, self.specs[1])
        moved, bias = weight @ shift, layer.bias
        assert bias is None or isinstance(bias, Tensor)
        bias = moved if bias is None else moved + bias
        made = F.linear(inputs, rounded_straight(weight * s, self.specs[0]), bias).to(x.dtype)
        branch = getattr(layer, "branch", None)
        return made if branch is None else made + branch(x)


class BlockTask:
    """What the inputs of a block learn from: what enters it, and what it puts out in full precision.

    Args:
        walk: of full precision, at the block.
        part: the block.
        size: points that are run at a time.
    """

    def __init__(self, walk: Walk, part: Segment, size: int) -> None:
        assert part.block is not None
        self.walk, self.block, self.size = walk, part.block, size
        batches = [self.parts(rows) for rows in self.batches()]
        exact = [torch.cat([x.cpu() for x in own]) for own in zip(*batches, strict=True)]
        shares = [row_shares(walk.model, walk.data, x.shape[1]) for x in exact]
        self.streams = Streams.relative(exact, shares)
        self.targets = self.streams.joined(exact, slice(0, self.points)).float().flatten(1)

    @property
    def points(self) -> int:
        """How many."""
        return len(self.walk.data.t)

    def batches(self) -> list[slice]:
        """The points, a batch at a time."""
        return [slice(n, min(n + self.size, self.points)) for n in range(0, self.points, self.size)]

    def parts(self, rows: Points) -> list[Part]:
        """The tensors that the block, as it is now, returns for some points."""
        with torch.no_grad():
            args, kwargs = self.walk.arguments(self.block, rows)
        return parts_of(self.walk.through(self.block, rows, args, kwargs), count(rows))

    def loss(self, layers: Mapping[str, nn.Module], rows: Points) -> Float[Tensor, ""]:
        """The mean squared error of the output with `layers` in place."""
        with replaced(self.walk.model.denoiser, dict(layers)):
            found = self.streams.joined(self.parts(rows), rows).float().flatten(1)
        return (found - self.targets[rows].to(found.device)).square().mean()

    @torch.no_grad()
    def error(self, layers: Mapping[str, nn.Module]) -> float:
        """That of all points."""
        return sum(float(self.loss(layers, rows)) * count(rows) for rows in self.batches()) / self.points
