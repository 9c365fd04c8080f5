"""Simulated quantized layers, and the context manager that puts them into a model and takes them out again.

A `QuantLinear` holds a weight on its grid, with the codes that it stands for, and a module that rounds the input to its
grid; the product runs in floating point. The full-precision modules are replaced, never edited, so that the model is
bit-identical after.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from qdit.quant.affine import Rounded


class Shared(nn.Module):
    """Quantize once an input that several layers read one after the other (q, k and v)."""

    def __init__(self, quantizer: nn.Module, readers: int) -> None:
        super().__init__()
        self.quantizer, self.readers = quantizer, readers
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._left = 0

    def forward(self, x: Tensor) -> Tensor:
        """The quantized `x`; the last reader's call drops the copy."""
        if x is not self._input:
            self._input, self._output, self._left = x, self.quantizer(x), self.readers
        output, self._left = self._output, self._left - 1
        if self._left == 0:
            self._input = self._output = None
        assert output is not None
        return output


class QuantLinear(nn.Module):
    """A linear layer with a rounded weight [out, in] and a rounded input [..., in].

    A layer that a transform rewrote is one too, before it is rounded: its `quantizer` then only changes the basis.

    Args:
        layer: the full-precision layer, a linear or a patch-embedding convolution (kernel equal to stride), or one of
            this class, whose quantizer is not taken over.
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

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]; images [B, C, H, W] -> [B, out, H/p, W/p] for a patch embedding."""
        if self.patch is None:
            return F.linear(self.quantizer(x) if self.quantizer else x, self.weight, self.bias)
        tokens = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        tokens = F.linear(self.quantizer(tokens) if self.quantizer else tokens, self.weight, self.bias)
        return tokens.transpose(1, 2).unflatten(2, (x.shape[2] // self.patch, x.shape[3] // self.patch))


def patch_size(layer: nn.Module) -> int | None:
    """The side of the patches that a patch embedding multiplies, None for a layer that multiplies its input's rows."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size[0]
    return getattr(layer, "patch", None)


def matrix(layer: nn.Module) -> Tensor:
    """A layer's weight as [out, in]."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().flatten(1)


@contextmanager
def replaced(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    """`model` with the submodules of the given names replaced; the originals are back afterwards, whatever happens.

    What is replaced may also be an attribute that is no module, as an attention's processor is.
    """
    originals = {name: getattr(*_place(model, name)) for name in layers}
    try:
        for name, layer in layers.items():
            setattr(*_place(model, name), layer)
        yield model
    finally:
        for name, original in originals.items():
            owner, key = _place(model, name)
            if not isinstance(original, nn.Module):
                delattr(owner, key)  # a module gives way to another module only
            setattr(owner, key, original)


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds what is called `name`, and what it is called there."""
    owner, _, key = name.rpartition(".")
    return model.get_submodule(owner), key
