"""Activation quantizers while a unit learns: rounding with a straight-through gradient, and static steps that learn.

Esser et al., "Learned step size quantization" (arXiv 1902.08153), without its gradient scaling, as BRECQ and PTQ4DiT
(arXiv 2405.16005) use it: round(v) counts as v in the derivative, the zero point stays. All other quantizers (dynamic
ones, which clip nothing) have nothing to learn, and their gradient is the identity.
"""

from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.spec import as_rows


class _Passed(torch.autograd.Function):
    """A module's output, with the identity as its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        return module(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Stepped(torch.autograd.Function):
    """s clamp(round(x / s), lo, hi) of rows, with gradients for x and s [rows, 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lo: Any, hi: Any) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.bounds = lo, hi
        codes = (x / scale).round_()
        return torch.clamp(codes, lo, hi, out=codes).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        x, scale = ctx.saved_tensors
        scaled = x / scale
        codes = scaled.round()
        bounded = torch.clamp(codes, *ctx.bounds)
        outside = bounded != codes
        # d/ds: code - x / s inside, the bound itself outside
        slope = bounded.sub_(scaled.masked_fill_(outside, 0))
        return gradient.masked_fill(outside, 0), (slope * gradient).sum(-1, keepdim=True), None, None


class Straight(nn.Module):
    """A quantizer with nothing to learn; its input's gradient is its output's."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """What the quantizer gives."""
        return _Passed.apply(x, self.quantizer)  # pyright: ignore[reportReturnType]


class LearnedStep(nn.Module):
    """A static quantizer whose scale learns; the quantizer itself stays as it is.

    What an optimizer moves is `value`, the scale in units of `unit`. A relative unit is the calibrated scale over
    2^bits: a move of 1 shifts the far end of the range by one step, whatever the inputs' size, and the gradient that an
    optimizer sees does not depend on that size either. The logarithm of the scale would do as much, but could not
    express the released code's absolute moves. 1 is the unit of those.

    Args:
        quantizer: its scale is the start.
        relative: whether the unit is a share of the scale; else it is 1.
    """

    LEAST = 0.1
    """Of the calibrated step: how small a step may become. The released code lets it cross 0."""

    def __init__(self, quantizer: StaticQuantizer, *, relative: bool = True) -> None:
        super().__init__()
        self.quantizer = quantizer
        start = quantizer.scale.detach().float()
        # A power of two, so that the scale at the start is the calibrated one bit for bit.
        self.unit = start / 2**quantizer.spec.bits if relative else torch.ones_like(start)
        self.value = (start / self.unit).requires_grad_()
        self.smallest = self.LEAST * self.value.detach()
        bounds = (bound - quantizer.zero_point for bound in (quantizer.low, quantizer.high))
        # Where a tensor has one grid, plain numbers are faster.
        self.lo, self.hi = (bound.item() if bound.numel() == 1 else bound for bound in bounds)

    @property
    def scale(self) -> Tensor:
        """The step as it stands, of the shape of the quantizer's."""
        return self.value * self.unit

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`; bit for bit what the quantizer would give with this scale."""
        rows = as_rows(x, self.quantizer.spec).float()
        stepped = _Stepped.apply(rows, self.scale, self.lo, self.hi)
        return stepped.to(x.dtype).reshape(x.shape)  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def bound(self) -> None:
        """Keep the step positive."""
        torch.maximum(self.value, self.smallest, out=self.value)


def quantizers(layers: Mapping[str, nn.Module], exact: Container[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Every activation quantizer inside installed layers, by path; one that several layers share comes once.

    A quantizer is a module without children below a `QuantLinear`, or below any other installed module: how they are
    composed (in a sequence, by region, around an attention's products) is left to what holds them.

    Args:
        layers: by path.
        exact: modules below the layers that do not quantize, such as a transform's.
    """
    seen: set[nn.Module] = set()
    for prefix, layer in layers.items():
        for path, module in layer.named_modules():
            if path and module not in seen and module not in exact and not any(module.children()):
                seen.add(module)
                yield f"{prefix}.{path}", module


def learnable(
    layers: Mapping[str, nn.Module], exact: Container[nn.Module], *, relative: bool = True
) -> dict[str, nn.Module]:
    """What to put in the place of the quantizers of installed layers while these learn; see `LearnedStep`."""
    return {
        path: LearnedStep(module, relative=relative) if isinstance(module, StaticQuantizer) else Straight(module)
        for path, module in quantizers(layers, exact)
    }
