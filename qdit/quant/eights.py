"""Products of FP8 numbers: E4M3 inputs and weights with one scale a row, by the machine's FP8 instructions.

With numbers a, b and one scale of each row, s and t, an output is s t Σ a b. `torch._scaled_mm` makes Σ a b in float32
of tensors with one scale of 1, as it gives float32 of such tensors alone on CUDA, and scales come afterwards. Products
of E4M3 are exact in float32; their sums are rounded as the device adds them, on CUDA without `use_fast_accum`, whose
sums have 14 bits. So a layer's output is that of simulated quantization, but for the order and rounding of sums.

Source of the format: OCP 8-bit Floating Point Specification v1.0. Left out: E5M2, scales of blocks (MXFP8, whose
products want Blackwell's layout of scales), and static inputs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.quant.formats import FLOATS
from qdit.quant.grid import Rounded, extent
from qdit.quant.levels import Levels, covering_levels
from qdit.quant.spec import QuantSpec

KIND, MULTIPLE = torch.float8_e4m3fn, 16  # what `_scaled_mm` asks of both dimensions of a weight


@dataclass(frozen=True)
class Eights:
    """Rows of values s a: E4M3 numbers with one scale per row."""

    numbers: Tensor
    """float8_e4m3fn [rows, channels]."""
    scale: Float[Tensor, "rows 1"]


def is_eights(spec: QuantSpec) -> bool:
    """Whether a tensor's values are E4M3 numbers times one scale a row."""
    return spec.grid == "e4m3" and spec.granularity == "row" and spec.scale is None and spec.columns is None


def covered(rows: Float[Tensor, "rows n"], spec: QuantSpec) -> Eights:
    """Rows on the grids of their own values, as `fake_quantize` has them."""
    rows = rows.float()
    grid = covering_levels(rows, extent(rows, spec)[1], spec, None)
    return Eights(nearest(grid.in_levels(rows)), grid.scale)


def nearest(levels: Float[Tensor, "*shape"]) -> Tensor:
    """The nearest E4M3 numbers, ties to even; what lies beyond the largest becomes that."""
    end = FLOATS["e4m3"].largest
    return levels.clamp(-end, end).to(KIND)


def weight_eights(rounded: Rounded) -> Eights:
    """A weight [out, channels], whose codes are the bit patterns of its numbers: nothing is copied."""
    assert isinstance(rounded.grid, Levels)
    assert is_eights(rounded.spec)
    return Eights(rounded.codes.view(KIND), rounded.grid.scale)


def multiplies(out: int, channels: int) -> bool:
    """Whether there is a product of inputs and a weight [out, channels]."""
    return out % MULTIPLE == 0 and channels % MULTIPLE == 0


def product(
    x: Eights, weight: Eights, bias: Float[Tensor, " out"] | None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "rows out"]:
    """x̂ Ŵᵀ + bias, computed in float32 and rounded to a dtype."""
    one = x.scale.new_ones(())
    about = {"scale_a": one, "scale_b": one, "out_dtype": torch.float32}
    y = torch._scaled_mm(x.numbers, weight.numbers.t(), **about)  # pyright: ignore[reportPrivateImportUsage]
    y = y * x.scale * weight.scale.t().float()
    return (y if bias is None else y + bias.float()).to(dtype)
