"""Uniform affine quantization of rows: code = clamp(round(x / scale) + zero_point), x̂ = scale (code - zero_point).

Scale and zero point are the quantization parameters; the *grid* is the set of values that they and the code range can
represent. Rounding is half to even. Sources: Q-DiT (arXiv 2406.17343) eq. 1 and its released quantizer, GPTQ (arXiv
2210.17323), Nagel et al., "A white paper on neural network quantization" (arXiv 2106.08295). Quantization here is
simulated ("fake quantization"): values are rounded to the grid, that is quantized and dequantized, and stay in floating
point. Integer codes for storage come from `Affine.encode`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.quant.bracket import Bracket
from qdit.quant.spec import Grid, QuantSpec

SMALLEST_SCALE = 1e-8  # an all-zero row must not divide by zero
CLAMPED_SMALLEST_RANGE = 1e-5  # the released Q-DiT quantizer's


@dataclass(frozen=True)
class Affine:
    """One uniform grid per row: `scale` and `zero_point` [rows, 1], and integer codes from `low` to `high`."""

    scale: Float[Tensor, "rows 1"]
    zero_point: Float[Tensor, "rows 1"]
    low: int
    high: int
    PER_ROW: ClassVar[tuple[str, ...]] = ("scale", "zero_point")

    @property
    def signed(self) -> bool:
        """Whether codes may be negative."""
        return self.low < 0

    def encode(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """Quantize: integer codes in [low, high], as floats."""
        return (torch.round(x / self.scale) + self.zero_point).clamp(self.low, self.high)

    def decode(self, codes: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """Dequantize: the values that codes stand for."""
        return (codes - self.zero_point) * self.scale

    def round(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """`decode(encode(x))`, simulated quantization, in a new tensor and without further temporaries."""
        return nearest(x, self.scale, self.zero_point, self.low, self.high)

    def scaled(self, factors: Float[Tensor, "#rows 1"]) -> "Affine":
        """The grid with its scales multiplied."""
        return replace(self, scale=(self.scale * factors).clamp(min=SMALLEST_SCALE))

    def bracket(self, x: Float[Tensor, "rows n"]) -> Bracket:
        """See `Bracket`."""
        rows = x / self.scale
        floor = rows.floor()
        lowest, highest = self.low - self.zero_point, self.high - self.zero_point
        # Beyond the grid both neighbours are clamped to the same code.
        inside = (floor >= lowest) & (floor < highest)
        origin = floor.clamp(lowest, highest) * self.scale
        return Bracket(origin, inside * self.scale, rows - floor, rows.round() > floor)


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
