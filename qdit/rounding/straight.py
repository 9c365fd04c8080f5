"""Activation quantizers while a unit learns: rounding with a straight-through gradient, and static steps that learn.

Esser et al., "Learned step size quantization" (arXiv 1902.08153), without its gradient scaling, as BRECQ and PTQ4DiT
(arXiv 2405.16005) use it: round(v) counts as v in the derivative, the zero point stays. Dynamic quantizers have nothing
to learn; no input of theirs is clipped, so their gradient is the identity.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdit.activation.dynamic import DynamicQuantizer
from qdit.activation.static import StaticQuantizer
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
    def forward(ctx: Any, x: Tensor, scale: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, lo, hi)
        codes = (x / scale).round_()
        return torch.clamp(codes, lo, hi, out=codes).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        x, scale, lo, hi = ctx.saved_tensors
        scaled = x / scale
        codes = scaled.round()
        inside = (codes >= lo) & (codes <= hi)
        passed = gradient * inside
        # d/ds: code - x / s inside, the bound itself outside
        slope = torch.clamp(codes, lo, hi, out=codes).sub_(scaled.mul_(inside))
        return passed, slope.mul_(gradient).sum(-1, keepdim=True), None, None


class Straight(nn.Module):
    """A quantizer with nothing to learn; its input's gradient is its output's."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """What the quantizer gives."""
        return _Passed.apply(x, self.quantizer)  # pyright: ignore[reportReturnType]


class LearnedStep(nn.Module):
    """A static quantizer whose scale learns; the quantizer itself stays as it is until `keep`.

    Args:
        quantizer: its scale is the start.
    """

    LEAST = 0.1
    """Of the calibrated step: how small a step may become. The released code lets it cross 0."""

    def __init__(self, quantizer: StaticQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.scale = quantizer.scale.detach().float().clone().requires_grad_()
        self.smallest = self.LEAST * self.scale.detach()
        self.lo, self.hi = quantizer.low - quantizer.zero_point, quantizer.high - quantizer.zero_point

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`; bit for bit what the quantizer would give with this scale."""
        rows = as_rows(x, self.quantizer.spec).float()
        stepped = _Stepped.apply(rows, self.scale, self.lo, self.hi)
        return stepped.to(x.dtype).reshape(x.shape)  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def bound(self) -> None:
        """Keep the step positive."""
        torch.maximum(self.scale, self.smallest, out=self.scale)

    def keep(self) -> None:
        """Give the quantizer the scale that was learned."""
        self.quantizer.scale.copy_(self.scale.detach())


def quantizers(layers: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Every activation quantizer inside installed layers, by path; one that several layers share comes once."""
    seen: set[int] = set()
    for prefix, layer in layers.items():
        for path, module in layer.named_modules():
            if isinstance(module, StaticQuantizer | DynamicQuantizer) and id(module) not in seen:
                seen.add(id(module))
                yield f"{prefix}.{path}" if path else prefix, module


def static_quantizers(layers: Mapping[str, nn.Module]) -> dict[str, StaticQuantizer]:
    """Those whose scale can be learned."""
    return {path: module for path, module in quantizers(layers) if isinstance(module, StaticQuantizer)}


def learnable(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """What to put in the place of the quantizers of installed layers while these learn."""
    return {
        path: LearnedStep(module) if isinstance(module, StaticQuantizer) else Straight(module)
        for path, module in quantizers(layers)
    }
