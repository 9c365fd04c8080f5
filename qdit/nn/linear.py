"""Quantized layers.

A `QuantLinear` holds a weight on its grid, with the codes that it stands for, and a module that rounds the input to its
grid. The product runs on integers where both are codes and `qdit.execution` allows it, else in floating point.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qdit.execution import int8
from qdit.quant.affine import Affine
from qdit.quant.grid import Rounded
from qdit.quant.integers import Codes, multiplies, product, weight_codes


class Shared(nn.Module):
    """Quantize once an input that several layers, its readers, consume one after the other (q, k and v)."""

    def __init__(self, quantizer: nn.Module, readers: int) -> None:
        super().__init__()
        self.quantizer, self.readers = quantizer, readers
        self._input: Tensor | None = None
        self._made: dict[str, Any] = {}
        self._left = 0

    def forward(self, x: Tensor) -> Tensor:
        """The quantized `x`."""
        return self._once("values", x, self.quantizer)

    def codes(self, x: Tensor) -> Codes | None:
        """The codes of `x`, if it has any."""
        return self._once("codes", x, lambda x: codes_of(self.quantizer, x))

    def _once(self, kind: str, x: Tensor, make: Callable[[Tensor], Any]) -> Any:
        """What `make` makes of `x`; the last reader's call drops the copy."""
        if x is not self._input:
            self._input, self._made, self._left = x, {}, self.readers
        if kind not in self._made:
            self._made[kind] = make(x)
        made, self._left = self._made[kind], self._left - 1
        if self._left == 0:
            self._input, self._made = None, {}
        return made


class Observed(nn.Module):
    """An input quantizer (None passes the input) with an observer of its output.

    Args:
        quantizer: of the input.
        see: the observer.
        by_rows: whether the observer may be shown the rows of an operand part by part (`qdit.nn.attention.by_rows`).
    """

    def __init__(self, quantizer: nn.Module | None, see: Callable[[Tensor], None], by_rows: bool = False) -> None:
        super().__init__()
        self.quantizer, self.see, self.by_rows = quantizer, see, by_rows

    def forward(self, x: Tensor) -> Tensor:
        """The quantized `x`."""
        x = self.quantizer(x) if self.quantizer else x
        self.see(x)
        return x


def codes_of(quantizer: nn.Module | None, x: Tensor) -> Codes | None:
    """The integers that a quantizer makes of its input; None if it makes none."""
    if isinstance(quantizer, nn.Sequential):
        return codes_of(quantizer[-1], quantizer[:-1](x)) if has_codes(quantizer) else None
    return quantizer.codes(x) if has_codes(quantizer) else None  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]


def has_codes(quantizer: nn.Module | None) -> bool:
    """Whether a quantizer's values are integers times scales (uniform grids), so that it can give codes."""
    while isinstance(quantizer, nn.Sequential | Shared):
        quantizer = quantizer[-1] if isinstance(quantizer, nn.Sequential) else quantizer.quantizer
    return bool(getattr(quantizer, "has_codes", False))


class QuantLinear(nn.Module):
    """A linear layer with a rounded weight [out, in] and a rounded input [..., in].

    A layer that a transform rewrote is one too, before it is rounded: its `quantizer` then only changes the basis.

    Args:
        layer: the full-precision layer, a linear or a patch-embedding convolution (kernel equal to stride), or one of
            this class, whose quantizer is not taken over. If it has a `branch`, a module, what that makes of the input
            is added.
        rounded: the weight [out, in] as codes on its grid; None keeps the layer's own.
        quantizer: rounds the input; None passes it.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module, rounded: Rounded | None, quantizer: nn.Module | None) -> None:
        super().__init__()
        own = matrix(layer)
        self.rounded = rounded
        self.register_buffer("weight", own if rounded is None else rounded.weight.to(own.dtype))
        bias = layer.bias
        assert bias is None or isinstance(bias, Tensor)
        self.register_buffer("bias", bias)
        self.quantizer = quantizer
        self.patch = patch_size(layer)
        self.branch: nn.Module | None = getattr(layer, "branch", None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]; for a patch embedding [B, C, *places] -> [B, out, *places / patch]."""
        if self.patch is None:
            return self.whole(x)
        tokens = self.whole(patches(x, self.patch))
        sides = [self.patch] * 2 if isinstance(self.patch, int) else self.patch
        return tokens.transpose(1, 2).unflatten(2, [n // side for n, side in zip(x.shape[2:], sides, strict=True)])

    def whole(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]: the product, and the branch's output for the input before it is rounded."""
        product = self.product(x)
        return product if self.branch is None else product + self.branch(x)

    def product(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        learning = torch.is_grad_enabled() and x.requires_grad
        if int8() and not learning and has_codes(self.quantizer) and self.integers is not None:
            codes = codes_of(self.quantizer, x)
            if codes is not None and multiplies(len(codes.integers), self.integers, codes.groups):
                return product(codes, self.integers, self.bias).to(x.dtype).view(*x.shape[:-1], -1)
        return F.linear(self.quantizer(x) if self.quantizer else x, self.weight, self.bias)

    @cached_property
    def integers(self) -> Codes | None:
        """The weight as an operand of integer products; None if it is none."""
        whole = self.rounded is not None and isinstance(self.rounded.grid, Affine)
        return weight_codes(self.rounded) if whole else None  # pyright: ignore[reportArgumentType]

    @property
    def has_integers(self) -> bool:
        """Whether weight and input are both integers times scales."""
        return has_codes(self.quantizer) and self.integers is not None


Patch = int | tuple[int, ...]
"""The side of an image's patches, or frames, height and width of a clip's."""


def patch_size(layer: nn.Module) -> Patch | None:
    """The patches that a patch embedding multiplies, None for a layer that multiplies its input's rows."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size[0]
    return tuple(layer.kernel_size) if isinstance(layer, nn.Conv3d) else getattr(layer, "patch", None)


def patches(x: Float[Tensor, "B C *places"], patch: Patch) -> Float[Tensor, "B patches values"]:
    """The patches of images [B, C, h, w] or clips [B, C, F, h, w] as rows, as the weight [out, values] reads them."""
    if isinstance(patch, int):
        return F.unfold(x, patch, stride=patch).transpose(1, 2)
    for place, side in enumerate(patch):
        x = x.unflatten(2 + 2 * place, (-1, side))  # [B, C, f, patch, h, patch, w, patch]
    places = range(2, x.ndim, 2)
    return x.permute(0, *places, 1, *(place + 1 for place in places)).flatten(len(places) + 1).flatten(1, -2)


def matrix(layer: nn.Module) -> Tensor:
    """A layer's weight as [out, in]."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().flatten(1)
