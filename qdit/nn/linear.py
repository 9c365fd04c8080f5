"""Quantized layers.

A `QuantLinear` holds a weight on its grid, with the codes that it stands for, and a module that rounds the input to its
grid. The product runs on integers or FP8 numbers where both are such and `qdit.execution` allows it, else on values in
the network's dtype.

A weight is held once: as codes, and their values beside them once a product in floating point has needed them; and from
the first product of integers on in that product's own form, from which codes and values are made again when asked for.
"""

from collections.abc import Callable
from math import lcm
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdit.execution import way
from qdit.nn.patches import by_patches, matrix, patch_size
from qdit.quant import eights
from qdit.quant.affine import Affine
from qdit.quant.eights import Eights
from qdit.quant.grid import Rounded, tensors_of
from qdit.quant.integers import Codes, multiplies
from qdit.quant.operands import Operand


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

    def codes(self, x: Tensor) -> Codes | Eights | None:
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


def codes_of(quantizer: nn.Module | None, x: Tensor) -> Codes | Eights | None:
    """The integers or FP8 numbers that a quantizer makes of its input; None if it makes none."""
    if not (has_codes(quantizer) or has_eights(quantizer)):
        return None
    if isinstance(quantizer, nn.Sequential):
        return codes_of(quantizer[-1], quantizer[:-1](x))
    return quantizer.codes(x)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]


def has_codes(quantizer: nn.Module | None) -> bool:
    """Whether a quantizer's values are integers times scales (uniform grids), so that it can give codes."""
    return bool(getattr(last(quantizer), "has_codes", False))


def has_eights(quantizer: nn.Module | None) -> bool:
    """Whether a quantizer's values are FP8 numbers times one scale a row, so that it can give these."""
    return bool(getattr(last(quantizer), "has_eights", False))


def last(quantizer: nn.Module | None) -> nn.Module | None:
    """What rounds, behind changes of the basis, and shared or not."""
    while isinstance(quantizer, nn.Sequential | Shared):
        quantizer = quantizer[-1] if isinstance(quantizer, nn.Sequential) else quantizer.quantizer
    return quantizer


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
    like: Tensor

    def __init__(self, layer: nn.Module, rounded: Rounded | None, quantizer: nn.Module | None) -> None:
        super().__init__()
        own = matrix(layer)
        self._rounded: Rounded | None = rounded
        self._operand: Operand | None = None
        self.shape = tuple(own.shape if rounded is None else rounded.codes.shape)
        self.register_buffer("weight", own if rounded is None else None)
        self.register_buffer("like", own.new_empty(0), persistent=False)  # where and of what dtype the weight is
        bias = layer.bias
        assert bias is None or isinstance(bias, Tensor)
        self.register_buffer("bias", bias)
        self.quantizer = quantizer
        self.patch = patch_size(layer)
        self.branch: nn.Module | None = getattr(layer, "branch", None)

    def __getattr__(self, name: str) -> Any:
        """As of any module; the values of a rounded weight are made when they are first asked for."""
        found = super().__getattr__(name)
        if name != "weight" or found is not None:
            return found
        with torch.inference_mode(False):
            assert self.rounded is not None
            found = self.rounded.weight.to(self.like)
            self._buffers["weight"] = found  # `self.weight =` would ask for it again
        return found

    @property
    def rounded(self) -> Rounded | None:
        """The weight as codes on its grid; None if it is the layer's own."""
        return self._rounded if self._operand is None else self._operand.rounded()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight's values."""
        return self.like.dtype

    @property
    def groups(self) -> int:
        """Of channels in which each output of a weight of integers has a scale."""
        if self._operand is not None:
            return self._operand.scales
        grid = None if self._rounded is None else self._rounded.grid
        return max(1, len(grid.scale) // self.shape[0]) if isinstance(grid, Affine) else 1

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]; for a patch embedding [B, C, *places] -> [B, out, *places / patch]."""
        return by_patches(x, self.patch, self.whole)

    def whole(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]: the product, and the branch's output for the input before it is rounded."""
        product = self.product(x)
        return product if self.branch is None else product + self.branch(x)

    def product(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        learning = torch.is_grad_enabled() and x.requires_grad
        if not learning and self.multiplied != "simulated" and x.numel():
            codes, (out, channels) = codes_of(self.quantizer, x), self.shape
            if isinstance(codes, Eights):
                assert self.rounded is not None
                product = eights.product(codes, eights.weight_eights(self.rounded), self.bias, x.dtype)
                return product.view(*x.shape[:-1], out)
            if codes is not None and multiplies(codes, out, channels, self.groups):
                return self.operand(codes.groups).product(codes, self.bias, x.dtype).view(*x.shape[:-1], out)
        return F.linear(self.quantizer(x) if self.quantizer else x, self.weight, self.bias)

    def operand(self, groups: int) -> Operand:
        """The weight as an operand of integer products, which takes the place of its codes and values.

        Args:
            groups: of channels in which the input has a scale each.
        """
        if self._operand is None or self._operand.groups != groups:
            assert self.rounded is not None
            self._operand = Operand(self.rounded, groups)
            self._rounded = self._buffers["weight"] = None
        return self._operand

    def tensors(self) -> list[Tensor]:
        """All that is held for the weight: values, codes, scales."""
        held = [each for each in (self._buffers["weight"],) if each is not None]
        if self._rounded is not None:
            held += [self._rounded.codes, *tensors_of(self._rounded.grid).values()]
        return held if self._operand is None else held + self._operand.tensors()

    @property
    def bytes(self) -> int:
        """Of `tensors`."""
        return sum(each.numel() * each.element_size() for each in self.tensors())

    @property
    def multiplied(self) -> Literal["int8", "fp8", "simulated"]:
        """What the product is of now, if the device has one of these shapes."""
        if self.has_integers and way().takes(lcm(self.groups, self.input_groups)):
            return "int8"
        return "fp8" if way().eights and self.has_eights else "simulated"

    @property
    def has_eights(self) -> bool:
        """Whether weight and input are both FP8 numbers times one scale a row, in a shape that can be multiplied."""
        rounded = self._rounded is not None and eights.is_eights(self._rounded.spec)
        return rounded and has_eights(self.quantizer) and eights.multiplies(*self.shape)

    @property
    def input_groups(self) -> int:
        """Of channels in which inputs have a scale each."""
        spec = getattr(last(self.quantizer), "spec", None)
        return self.shape[1] // spec.group_size if spec is not None and spec.granularity == "group" else 1

    @property
    def has_integers(self) -> bool:
        """Whether weight and input are both integers times scales."""
        integers = self._rounded is not None and isinstance(self._rounded.grid, Affine)
        return (integers or self._operand is not None) and has_codes(self.quantizer)
