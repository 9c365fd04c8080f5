"""A quantized layer written so that OpenVINO multiplies its integers, with qdit's codes, scales and zero points.

OpenVINO makes a product one of integers where a `FakeQuantize` of 256 levels meets a weight of int8 behind a conversion
and a multiplication ("low precision transformations"). Its own steps have no place for a zero point of a weight, for a
scale of each token, or for codes of fewer bits; so only the product of codes is written in that form, and the rest
around it. With inputs s (c - z) and weights t (b - e), a row of n channels gives

    s t (Σ c b  -  z Σ b  -  e Σ c  +  n z e)

where Σ b is a constant. Inputs with one static range of 8 bits are written as one `FakeQuantize` of their values, which
OpenVINO fuses with what made them; all others as codes of step 1, found by the same operations as in
`qdit.quant.affine`.

Source: Jacob et al., arXiv 1712.05877, §2.3, as in `qdit.quant.integers`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdit.exports.forms import steps
from qdit.nn.linear import QuantLinear
from qdit.nn.patches import by_patches
from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.affine import Affine, affine, code_range
from qdit.quant.integers import weight_codes
from qdit.quant.spec import QuantSpec

LEVELS = 256
BYTE, SIGNED = (0, 255), (-128, 127)


class Values(nn.Module):
    """The values of inputs [..., channels] on one static grid of 256 codes.

    Args:
        scale, zero_point, low, high: of the grid (`Affine`); the zero point is one of the codes.
    """

    def __init__(self, scale: float, zero_point: int, low: int, high: int) -> None:
        super().__init__()
        self.grid = scale, zero_point, low, high

    def forward(self, x: Tensor) -> tuple[Tensor, None, None]:
        """The rounded values; no step and no zero point is left to be taken out."""
        return torch.fake_quantize_per_tensor_affine(x, *self.grid), None, None


class Steps(nn.Module):
    """The codes of inputs [..., channels], of one static grid or of that of each token's own values.

    Args:
        spec: of the inputs.
        grid: None for grids that are found at run time.
    """

    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(self, spec: QuantSpec, grid: Affine | None) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("scale", None if grid is None else grid.scale.reshape(1))
        self.register_buffer("zero_point", None if grid is None else grid.zero_point.reshape(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, the step of one of them [..., 1], and their zero point, None where it is always 0."""
        grid = self.grid(x)
        codes = (torch.round(x / grid.scale) + grid.zero_point).clamp(grid.low, grid.high)
        codes = torch.fake_quantize_per_tensor_affine(codes, 1.0, 0, *(SIGNED if grid.signed else BYTE))
        return codes, grid.scale, None if self.spec.grid in ("symmetric", "unsigned") else grid.zero_point

    def grid(self, x: Tensor) -> Affine:
        """The grid of an input, by rows [..., 1]."""
        if self.scale is not None and self.zero_point is not None:
            return Affine(self.scale, self.zero_point, *code_range(self.spec))
        dims = tuple(range(x.ndim)) if self.spec.granularity == "tensor" else (-1,)
        return affine(x.amin(dims, keepdim=True), x.amax(dims, keepdim=True), self.spec)


class Emitted(nn.Module):
    """A quantized layer [..., in] -> [..., out] in place of a `QuantLinear`; sums are scaled in float32.

    Args:
        layer: one in which nothing is missing for it (`qdit.engine.misfits`).
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None
    sums: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        assert layer.rounded is not None
        weight = weight_codes(layer.rounded)
        *before, rounds = steps(layer.quantizer)
        self.before, self.inputs = nn.Sequential(*before), inputs_of(rounds)
        self.branch, self.patch = layer.branch, layer.patch
        offset = None if weight.offset is None else (weight.offset * weight.scale).flatten()  # e t
        sums = weight.sums * weight.scale  # t Σ b
        self.register_buffer("codes", weight.integers)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("offset", offset)
        self.register_buffer("sums", sums.flatten() - (0 if offset is None else weight.integers.shape[1] * offset))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.float())

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's."""
        return by_patches(x, self.patch, self.whole)

    def whole(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], with the branch's output for the input before it is rounded."""
        codes, step, zero_point = self.inputs(self.before(x).float())
        y = F.linear(codes, self.codes.float() * self.scale)
        if self.offset is not None:
            y = y - codes.sum(-1, keepdim=True) * self.offset
        if zero_point is not None:
            y = y - zero_point * self.sums
        y = y if step is None else y * step
        y = (y if self.bias is None else y + self.bias).to(x.dtype)
        return y if self.branch is None else y + self.branch(x)


def inputs_of(quantizer: nn.Module) -> Values | Steps:
    """What rounds inputs, in the form that is written."""
    spec = getattr(quantizer, "spec", None)
    assert isinstance(spec, QuantSpec)
    if not isinstance(quantizer, StaticQuantizer):
        return Steps(spec, None)
    grid = Affine(quantizer.scale, quantizer.zero_point, quantizer.low, quantizer.high)
    zero_point = int(grid.zero_point)
    if grid.high - grid.low + 1 == LEVELS and grid.low <= zero_point <= grid.high:
        return Values(float(grid.scale), zero_point, grid.low, grid.high)
    return Steps(spec, grid)
