"""Uniform affine quantization of rows: code = clamp(round(x / scale) + zero_point), x̂ = scale (code - zero_point).

Scale and zero point are the quantization parameters; the *grid* is the set of values that they and the code range can
represent. Rounding is half to even. Sources: Q-DiT (arXiv 2406.17343) eq. 1 and its released quantizer, GPTQ (arXiv
2210.17323), Nagel et al., "A white paper on neural network quantization" (arXiv 2106.08295). Quantization here is
simulated ("fake quantization"): values are rounded to the grid, that is quantized and dequantized, and stay in floating
point. Integer codes for storage come from `encode`.
"""

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from qdit.quant.spec import Grid, QuantSpec, as_rows

SMALLEST_SCALE = 1e-8  # an all-zero row must not divide by zero
CLAMPED_SMALLEST_RANGE = 1e-5  # the released Q-DiT quantizer's


@dataclass(frozen=True)
class Affine:
    """One uniform grid per row: `scale` and `zero_point` [rows, 1], and integer codes from `low` to `high`."""

    scale: Float[Tensor, "rows 1"]
    zero_point: Float[Tensor, "rows 1"]
    low: int
    high: int


def affine(lo: Float[Tensor, "rows 1"], hi: Float[Tensor, "rows 1"], spec: QuantSpec) -> Affine:
    """The grid of `spec` that covers each row's range [lo, hi] (see `QuantSpec.grid` for the conventions).

    Raises:
        ValueError: the spec's code-book has no single step.
    """
    if spec.grid not in get_args(Grid):
        raise ValueError(f"{spec.grid} is not a grid with one step")
    low, high = code_range(spec)
    levels = high - low
    half = 2 ** (spec.bits - 1)
    if spec.grid == "symmetric":
        scale = (torch.maximum(-lo, hi) / (half - 1)).clamp(min=SMALLEST_SCALE)
        return Affine(scale, torch.zeros_like(scale), low, high)
    if spec.grid == "symmetric_full":
        scale = (2 * torch.maximum(-lo, hi) / levels).clamp(min=SMALLEST_SCALE)
        return Affine(scale, torch.full_like(scale, half), low, high)
    if spec.grid == "unsigned":
        scale = (hi / levels).clamp(min=SMALLEST_SCALE)
        return Affine(scale, torch.zeros_like(scale), low, high)
    if spec.grid == "asymmetric":
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
        scale = ((hi - lo) / levels).clamp(min=SMALLEST_SCALE)
    elif spec.grid == "asymmetric_free":
        # A constant row has no range; its own magnitude as the step makes it a code.
        scale = torch.where(hi > lo, (hi - lo) / levels, hi.abs()).clamp(min=SMALLEST_SCALE)
    else:
        scale = (hi - lo).clamp(min=CLAMPED_SMALLEST_RANGE) / levels
    zero_point = torch.round(-lo / scale)
    if spec.grid == "asymmetric_clamped":
        zero_point = zero_point.clamp(0, levels)
    return Affine(scale, zero_point, low, high)


def code_range(spec: QuantSpec) -> tuple[int, int]:
    """The lowest and the highest code of a spec's grid.

    >>> code_range(QuantSpec(bits=4)), code_range(QuantSpec(bits=4, grid="symmetric"))
    ((0, 15), (-8, 7))
    """
    levels = 2**spec.bits
    return (-levels // 2, levels // 2 - 1) if spec.grid == "symmetric" else (0, levels - 1)


def encode(x: Float[Tensor, "rows n"], grid: Affine) -> Float[Tensor, "rows n"]:
    """Quantize: integer codes in [low, high], as floats."""
    return (torch.round(x / grid.scale) + grid.zero_point).clamp(grid.low, grid.high)


def decode(codes: Float[Tensor, "rows n"], grid: Affine) -> Float[Tensor, "rows n"]:
    """Dequantize: the values that codes stand for."""
    return (codes - grid.zero_point) * grid.scale


def round_to_grid(x: Float[Tensor, "rows n"], grid: Affine) -> Float[Tensor, "rows n"]:
    """`decode(encode(x))`, simulated quantization, in a new tensor and without further temporaries."""
    return nearest(x, grid.scale, grid.zero_point, grid.low, grid.high)


def nearest(x: Float[Tensor, "*shape"], scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """The nearest values of a grid, a new tensor; scale and zero point broadcast against `x`.

    The passes work in place because an activation is large: a fresh tensor for every operation would cost several
    times the arithmetic in page faults.
    """
    y = x / scale
    y.round_()
    torch.maximum(y, low - zero_point, out=y)  # clamp with tensors is ten times slower
    torch.minimum(y, high - zero_point, out=y)
    return y.mul_(scale)


def fake_quantize(x: Float[Tensor, "*shape"], spec: QuantSpec, grid: Affine | None = None) -> Float[Tensor, "*shape"]:
    """Round `x` to the grid of `spec`, in `x`'s dtype; without a `grid`, to the one of each row's minimum and maximum.

    >>> x = torch.tensor([-0.3, -0.1, 0.0, 0.25, 1.0])
    >>> fake_quantize(x, QuantSpec(bits=4))
    tensor([-0.2600, -0.0867,  0.0000,  0.2600,  1.0400])

    Args:
        x: [..., channels].
        spec: of the tensor; at 16 bits `x` itself is returned.
        grid: of the rows of `as_rows(x, spec)`.

    Raises:
        UserError: the group size does not divide the channels.
    """
    if spec.is_identity:
        return x
    rows = as_rows(x, spec).float()
    if grid is None:
        grid = affine(rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True), spec)
    return round_to_grid(rows, grid).to(x.dtype).reshape(x.shape)


@dataclass(frozen=True)
class Rounded:
    """A quantized weight: integer codes with their grid; `weight` is the dequantized tensor."""

    codes: Integer[Tensor, "out channels"]
    """uint8, or int8 where codes are signed."""
    grid: Affine
    """A scale and a zero point for each row of `as_rows(weight, spec)`."""
    spec: QuantSpec

    @classmethod
    def of(cls, weight: Float[Tensor, "out channels"], grid: Affine, spec: QuantSpec) -> "Rounded":
        """The codes nearest to a weight; the codes of a weight that lies on the grid already give it back bit for bit.

        `grid` is that of the rows of `as_rows(weight, spec)`.

        >>> weight = torch.tensor([[-0.3, -0.1, 0.25, 1.0]])
        >>> spec = QuantSpec(bits=4)
        >>> Rounded.of(weight, affine(weight.amin(1, True), weight.amax(1, True), spec), spec).codes
        tensor([[ 0,  2,  6, 15]], dtype=torch.uint8)
        """
        codes = encode(as_rows(weight, spec), grid).view(weight.shape)
        return cls(codes.to(torch.int8 if grid.low < 0 else torch.uint8), grid, spec)

    @property
    def weight(self) -> Float[Tensor, "out channels"]:
        """The dequantized weight, float32."""
        return decode(as_rows(self.codes, self.spec).float(), self.grid).view(self.codes.shape)
