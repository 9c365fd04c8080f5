"""AdaRound's arithmetic: soft rounding of a weight between its two nearest codes, and the regularizer that decides it.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv 2004.10568), eq. 21-24:

    w̃ = s (clamp(floor(w / s) + h(α) + z, low, high) - z)        h(α) = clamp(1.2 σ(α) - 0.1, 0, 1)
    penalty = Σ 1 - |2 h(α) - 1|^β                                 β from 20 to 2 while it learns

α starts where h is the fractional part of w / s, so that w̃ is the clipped weight; codes round up where α >= 0. Scale
and zero point stay fixed. With another number format the two values around w take the place of floor(w / s) and the
next code, and h is the share of the way from one to the other; "scale-aware" rounding (FP4DiT, arXiv 2503.15465) has
σ(V / s) in the place of σ(α), with s the distance of the two: V is in the weight's own units, so that a step of V moves
α further where values lie close together. Everything is elementwise, so the chain rule from w̃ to
α is written out by hand: where batches are small, an autograd graph with a dozen tensors of the weight's size would
cost as much as the layer itself.
"""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.quant.grid import Rounded, RowGrid
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


class LearnedWeight(Protocol):
    """A weight [out, channels] while it learns what it is rounded to."""

    alpha: Tensor
    """What `Adam` moves."""
    dtype: torch.dtype

    def soft(self) -> Float[Tensor, "out channels"]:
        """What the layer multiplies, in the weight's dtype: a leaf tensor whose gradient is given to `learn`."""
        ...

    def learn(self, gradient: Float[Tensor, "out channels"], weight: float, beta: float) -> None:
        """Set α's gradient, given the loss's for what `soft` gave, with `weight` times a penalty of exponent `beta`."""
        ...

    def hard(self) -> Rounded:
        """The rounded weight."""
        ...


class SoftWeight:
    """A weight [out, channels] that learns its rounding.

    Args:
        weight: in full precision.
        grid: of each row of `as_rows(weight, spec)`; it stays.
        spec: of the weight.
        scale_aware: whether what learns is in units of the weight, and not of the distance of its two values.
    """

    def __init__(
        self, weight: Float[Tensor, "out channels"], grid: RowGrid, spec: QuantSpec, scale_aware: bool = False
    ) -> None:
        self.shape, self.dtype, self.grid, self.spec = weight.shape, weight.dtype, grid, spec
        found = grid.bracket(as_rows(weight, spec).float())
        alpha = initial_alpha(found.fraction)
        edge = torch.where(found.up, 0.0, -TIE)
        self.alpha = torch.where(found.up == (alpha >= 0), alpha, edge)
        """[rows, row length]; `Adam` moves it. Of scale-aware rounding it is V."""
        self.origin, self.reach = found.origin, found.reach
        """w̃ moves from `origin` by `reach` while h goes from 0 to 1."""
        self.unit: Tensor | None = None
        """What α counts in; None for 1."""
        if scale_aware:
            self.unit = torch.where(self.reach > 0, self.reach, 1.0)  # beyond the grid nothing moves
            self.alpha.mul_(self.unit)
        self.sigmoid = torch.empty_like(alpha)

    def soft(self) -> Float[Tensor, "out channels"]:
        """The soft weight w̃ in the weight's dtype, a leaf tensor whose gradient is given to `learn`."""
        torch.sigmoid(self.alpha if self.unit is None else self.alpha / self.unit, out=self.sigmoid)
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
        found = torch.ops.aten.sigmoid_backward(total, self.sigmoid).mul_(ZETA - GAMMA)
        self.alpha.grad = found if self.unit is None else found.div_(self.unit)

    def hard(self) -> Rounded:
        """The weight with hard rounding: up where α >= 0, down elsewhere."""
        chosen = torch.where(self.alpha >= 0, self.origin + self.reach, self.origin)
        return Rounded.of(chosen.view(self.shape), self.grid, self.spec)
