"""Learned ends of ranges (PassionSR, arXiv 2411.17106: LBQ; of weights alone, OmniQuant's learned clipping).

With trainable ends l and u of n + 1 codes,

    a = (u - l) / n,    z = round(-l / a),    y = a (clamp(round(x / a) + z, 0, n) - z)

and, where round(v) counts as v in derivatives, with v = (x - l) / a and k = round(v):

    ∂y/∂l = (v - k) / n inside, 1 below l, 0 above u        ∂y/∂u = (k - v) / n, 0, 1        ∂y/∂x = 1 inside, else 0

The zero point is rounded, as in the released code, so that 0 stays 0: l is moved to a multiple of a. The paper's own
formula, round((x - l) / a) a + l, has no code for 0.
"""

from collections.abc import Container, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.affine import SMALLEST_SCALE, Affine, nearest
from qdit.quant.grid import Rounded, RowGrid
from qdit.quant.spec import QuantSpec, as_rows
from qdit.rounding.reconstruction.ste import LearnedStep, Straight, quantizers


def has_ends(spec: QuantSpec) -> bool:
    """Whether a grid has two ends that may lie anywhere: a zero point."""
    return spec.grid.startswith("asymmetric")


def grid_between(ends: Float[Tensor, "rows 2"], like: Affine, spec: QuantSpec) -> Affine:
    """The grid of codes as `like` has them from l to u, the columns of `ends`; one that must hold 0 does.

    Ends are in steps of `like`, so that those of its own range give it bit for bit.
    """
    lower, upper = ends.unsqueeze(-1).unbind(1)
    if spec.grid == "asymmetric":
        lower, upper = lower.clamp(max=0), upper.clamp(min=0)
    step = ((upper - lower) / (like.high - like.low)).clamp(min=SMALLEST_SCALE)
    return Affine(like.scale * step, torch.round(-lower / step) + like.low, like.low, like.high)


def starting_ends(like: Affine) -> Float[Tensor, "rows 2"]:
    """The ends of a grid in its steps."""
    return torch.cat([like.low - like.zero_point, like.high - like.zero_point], 1)


def slopes(x: Float[Tensor, "rows n"], grid: Affine) -> tuple[Tensor, Tensor, Tensor]:
    """(∂y/∂l, ∂y/∂u, ∂y/∂x) of each value, [rows, n]; see the module."""
    levels = grid.high - grid.low
    scaled = x / grid.scale
    codes = scaled.round() + grid.zero_point
    below, above = codes < grid.low, codes > grid.high
    outside = below | above
    off = (scaled - scaled.round()).masked_fill_(outside, 0) / levels
    return off + below.to(off), above.to(off) - off, (~outside).to(off)


class SoftEnds:
    """A weight [out, channels] whose ranges learn; codes are the nearest ones. In the place of a `SoftWeight`.

    Args:
        weight: in full precision.
        grid: of each row of `as_rows(weight, spec)`, where it starts.
        spec: of the weight.
    """

    def __init__(self, weight: Float[Tensor, "out channels"], grid: RowGrid, spec: QuantSpec) -> None:
        assert isinstance(grid, Affine)
        self.shape, self.dtype, self.start, self.spec = weight.shape, weight.dtype, grid, spec
        self.rows = as_rows(weight, spec).float()
        self.alpha = starting_ends(grid)
        """The ends in steps of the first grid, [rows, 2]; `Adam` moves them."""

    @property
    def grid(self) -> Affine:
        """As it is now."""
        return grid_between(self.alpha, self.start, self.spec)

    def soft(self) -> Float[Tensor, "out channels"]:
        """The rounded weight in the weight's dtype, a leaf tensor whose gradient is given to `learn`."""
        torch.maximum(self.alpha[:, 1:], self.alpha[:, :1] + 1, out=self.alpha[:, 1:])  # a step between them
        return self.grid.round(self.rows).view(self.shape).to(self.dtype).requires_grad_()

    def learn(self, gradient: Float[Tensor, "out channels"], weight: float, beta: float) -> None:
        """Set the ends' gradient, by the chain rule from the last rounded weight's; there is no penalty."""
        rows = as_rows(gradient, self.spec).float()
        lower, upper, _ = slopes(self.rows, self.grid)
        self.alpha.grad = torch.stack([(rows * lower).sum(1), (rows * upper).sum(1)], 1) * self.start.scale

    def hard(self) -> Rounded:
        """The weight, rounded to nearest between its ends."""
        return Rounded.of(self.rows.view(self.shape), self.grid, self.spec)


class _Ended(torch.autograd.Function):
    """Rows on the grid between ends [1, 2], in steps of another grid, with gradients for both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, like: Affine, spec: QuantSpec) -> Tensor:
        grid = grid_between(ends, like, spec)
        ctx.save_for_backward(x)
        ctx.grid, ctx.unit = grid, like.scale
        return nearest(x, grid.scale, grid.zero_point, grid.low, grid.high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,), (x,) = gradients, ctx.saved_tensors
        lower, upper, inside = slopes(x, ctx.grid)
        both = torch.stack([(gradient * lower).sum(1), (gradient * upper).sum(1)], 1)
        return gradient * inside, both * ctx.unit, None, None


class LearnedEnds(LearnedStep):
    """A static quantizer whose range is learned; the quantizer itself is not changed. `value` are ends in its steps."""

    def __init__(self, quantizer: StaticQuantizer) -> None:
        super().__init__(quantizer, relative=False)
        self.like = Affine(quantizer.scale, quantizer.zero_point, quantizer.low, quantizer.high)
        self.value = starting_ends(self.like).detach().float().requires_grad_()

    @property
    def numbers(self) -> Float[Tensor, "1 2"]:
        """Scale and zero point."""
        grid = grid_between(self.value, self.like, self.quantizer.spec)
        return torch.cat([grid.scale, grid.zero_point], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        spec = self.quantizer.spec
        rows = as_rows(x, spec).float()
        made = _Ended.apply(rows, self.value, self.like, spec)
        return made.to(x.dtype).reshape(x.shape)  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def bound(self) -> None:
        """Keep a step between the ends."""
        self.value[:, 1:] = torch.maximum(self.value[:, 1:], self.value[:, :1] + 1)


def learnable_ends(layers: Mapping[str, nn.Module], exact: Container[nn.Module]) -> dict[str, nn.Module]:
    """As `qdit.rounding.reconstruction.ste.learnable`; static quantizers with a zero point learn both ends."""
    made: dict[str, nn.Module] = {}
    for path, module in quantizers(layers, exact):
        if not isinstance(module, StaticQuantizer):
            made[path] = Straight(module)
        else:
            made[path] = LearnedEnds(module) if has_ends(module.spec) else LearnedStep(module)
    return made
