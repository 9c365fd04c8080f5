"""AdaRound's arithmetic: soft rounding of a weight between its two nearest codes, and the regularizer that decides it.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv 2004.10568), eq. 21-24:

    w̃ = s (clamp(floor(w / s) + h(α) + z, low, high) - z)        h(α) = clamp(1.2 σ(α) - 0.1, 0, 1)
    penalty = Σ 1 - |2 h(α) - 1|^β                                 β from 20 to 2 while it learns

α starts where h is the fractional part of w / s, so that w̃ is the clipped weight; codes round up where α >= 0. Scale
and zero point stay fixed. Everything is elementwise, so the chain rule from w̃ to α is written out by hand: where
batches are small, an autograd graph with a dozen tensors of the weight's size would cost as much as the layer itself.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.quant.affine import Affine, Rounded
from qdit.quant.spec import QuantSpec, as_rows

GAMMA, ZETA = -0.1, 1.1
TIE = 1e-6  # an α with fraction 0.5 whose nearest (even) code is the lower one starts this far below 0


def initial_alpha(fraction: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The α whose h is the given fraction.

    >>> initial_alpha(torch.tensor([0.0, 0.25, 0.5, 0.9]))
    tensor([-2.3979, -0.8873,  0.0000,  1.6094])
    """
    return torch.log((fraction - GAMMA) / (ZETA - fraction))


def rectified(sigmoid: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The rectified sigmoid h(α), given σ(α)."""
    return (sigmoid * (ZETA - GAMMA)).add_(GAMMA).clamp_(0, 1)


def beta_at(step: int, steps: int, warmup: float, start: float, end: float) -> float:
    """β at a step from 1 to `steps`: `start` during the warm-up (a share of the steps), then linear to `end`.

    >>> [beta_at(step, 20_000, 0.2, 20, 2) for step in (1, 4_000, 8_000, 12_000, 16_000, 20_000)]
    [20.0, 20.0, 15.5, 11.0, 6.5, 2.0]
    """
    left = (steps - step) / (steps * (1 - warmup))
    return end + (start - end) * min(1.0, left)


class SoftWeight:
    """A weight [out, channels] that learns its rounding.

    Args:
        weight: in full precision.
        grid: scale and zero point of each row of `as_rows(weight, spec)`; they stay.
        spec: of the weight.
    """

    def __init__(self, weight: Float[Tensor, "out channels"], grid: Affine, spec: QuantSpec) -> None:
        rows = as_rows(weight, spec).float() / grid.scale
        self.shape, self.dtype, self.grid, self.spec = weight.shape, weight.dtype, grid, spec
        self.floor = rows.floor()
        alpha = initial_alpha(rows - self.floor)
        up = rows.round() > self.floor
        edge = torch.where(up, 0.0, -TIE)
        self.alpha = torch.where(up == (alpha >= 0), alpha, edge)
        """[rows, row length]; `Adam` moves it."""
        lowest, highest = grid.low - grid.zero_point, grid.high - grid.zero_point
        # Beyond the grid both neighbours are clamped to the same code.
        inside = (self.floor >= lowest) & (self.floor < highest)
        self.origin = self.floor.clamp(lowest, highest) * grid.scale
        self.reach = inside * grid.scale
        """How far w̃ moves from `origin` while h goes from 0 to 1."""
        self.sigmoid = torch.empty_like(alpha)

    def soft(self) -> Float[Tensor, "out channels"]:
        """The soft weight w̃ in the weight's dtype, a leaf tensor whose gradient is given to `learn`."""
        torch.sigmoid(self.alpha, out=self.sigmoid)
        weight = torch.addcmul(self.origin, rectified(self.sigmoid), self.reach)
        return weight.view(self.shape).to(self.dtype).requires_grad_()

    def learn(self, gradient: Float[Tensor, "out channels"], weight: float, beta: float) -> None:
        """Set α's gradient: the loss's, by the chain rule from the last w̃'s, plus `weight` times the penalty's."""
        total = as_rows(gradient, self.spec).float() * self.reach
        stretched = (self.sigmoid * (ZETA - GAMMA)).add_(GAMMA)
        if weight:
            signed = stretched.clamp(0, 1).mul_(2).sub_(1)
            total.sub_(signed.abs().pow_(beta - 1).copysign_(signed), alpha=2 * beta * weight)
        total = torch.ops.aten.hardtanh_backward(total, stretched, 0, 1)
        self.alpha.grad = torch.ops.aten.sigmoid_backward(total, self.sigmoid).mul_(ZETA - GAMMA)

    def hard(self) -> Rounded:
        """The weight with hard rounding: up where α >= 0, down elsewhere."""
        codes = self.floor + (self.alpha >= 0) + self.grid.zero_point
        codes = codes.clamp_(self.grid.low, self.grid.high).view(self.shape)
        return Rounded(codes.to(torch.int8 if self.grid.low < 0 else torch.uint8), self.grid, self.spec)
