"""Activation quantizers while a unit learns: straight-through estimators (STE), and learned step sizes (LSQ).

Esser et al., "Learned step size quantization" (arXiv 1902.08153), without its gradient scaling, as BRECQ and PTQ4DiT
(arXiv 2405.16005) use it: round(v) counts as v in the derivative, and the zero point stays fixed. A static quantizer of
one uniform grid for the whole tensor learns its step; all others learn nothing, and their gradient is the identity. Of
dynamic ones, which clip nothing, nothing is lost by that. Static ones with several numbers (groups of timesteps, heads,
two regions, formats with levels, exponents or clusters of channels) do clip, and stay as they were calibrated: a
learning rate of steps has no effect on them. QDrop (Wei et al., arXiv
2203.05740) lets each element of what they round pass unrounded with some probability, so that what is learned does not
lean on the calibration data's very rounding errors.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.spec import as_rows


class _Passed(torch.autograd.Function):
    """A module's output, with the identity as its gradient: the straight-through estimator."""

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
    """A quantizer that learns nothing, with the straight-through estimator: gradients pass through unchanged."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """What the quantizer gives."""
        return _Passed.apply(x, self.quantizer)  # pyright: ignore[reportReturnType]


class LearnedStep(nn.Module):
    """A static quantizer whose step size (scale) is learned; the quantizer itself is not changed.

    The optimizer's parameter is `value`, the scale in units of `unit`. A relative unit is the calibrated scale over
    2^bits: a change of 1 in `value` then shifts the far end of the range by one step, whatever the size of the inputs,
    and the gradient that the optimizer sees does not depend on that size either. Learning the logarithm of the scale
    would have the same effect, but could not express the released code, which moves the scale itself (unit 1).

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
        # A power of two, so that the initial scale equals the calibrated one bit for bit.
        self.unit = start / 2**quantizer.spec.bits if relative else torch.ones_like(start)
        self.value = (start / self.unit).requires_grad_()
        self.smallest = self.LEAST * self.value.detach()
        bounds = (bound - quantizer.zero_point for bound in (quantizer.low, quantizer.high))
        # Plain numbers are faster where the whole tensor has one grid.
        self.lo, self.hi = (bound.item() if bound.numel() == 1 else bound for bound in bounds)

    @property
    def scale(self) -> Tensor:
        """The current step size, in the shape of the quantizer's scale."""
        return self.value * self.unit

    @property
    def numbers(self) -> Tensor:
        """What was learned."""
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`; bit for bit what the quantizer would give with this scale."""
        rows = as_rows(x, self.quantizer.spec).float()
        stepped = _Stepped.apply(rows, self.scale, self.lo, self.hi)
        return stepped.to(x.dtype).reshape(x.shape)  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def bound(self) -> None:
        """Keep the step size positive."""
        torch.maximum(self.value, self.smallest, out=self.value)


class Dropped(nn.Module):
    """A quantizer of which, while it is `active`, each element passes unrounded with some probability.

    Args:
        quantizer: [...] -> [...].
        share: the probability.
        random: draws; on the device of what is rounded.
    """

    def __init__(self, quantizer: nn.Module, share: float, random: torch.Generator) -> None:
        super().__init__()
        self.quantizer, self.share, self.random, self.active = quantizer, share, random, False

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        rounded = self.quantizer(x)
        if not self.active:
            return rounded
        passing = torch.rand(x.shape, generator=self.random, device=self.random.device) < self.share
        return torch.where(passing, x, rounded)


@contextmanager
def dropping(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Those that can drop do so meanwhile."""
    found = [module for module in modules if isinstance(module, Dropped)]
    for module in found:
        module.active = True
    try:
        yield
    finally:
        for module in found:
            module.active = False


def quantizers(layers: Mapping[str, nn.Module], exact: Container[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Every activation quantizer inside installed layers, by path; one that several layers share comes once.

    A quantizer is a module without children below a `QuantLinear`, or below any other installed module, however they
    are composed there (in a sequence, by group of timesteps, around an attention's products).

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
    """Modules that replace the quantizers of installed layers while these learn, by path.

    Those of one static, uniform grid are `LearnedStep`, all others `Straight`, static ones that are `fixed` too.
    """
    return {
        path: LearnedStep(module, relative=relative) if isinstance(module, StaticQuantizer) else Straight(module)
        for path, module in quantizers(layers, exact)
    }


def fixed(module: nn.Module) -> bool:
    """Whether a quantizer has calibrated numbers that do not learn: it is static, and not one uniform grid."""
    spec = getattr(module, "spec", None)
    return spec is not None and not spec.dynamic and not isinstance(module, StaticQuantizer)
