"""The functions of the compiled kernel (`qdit.quant.native`) as operators of torch.

`torch.compile` takes them into its graphs as they are: it is told the shapes that come out, and fuses what lies between
them. Inputs and outputs may be float32 or bfloat16; what the kernel does between is in float32.
"""

from typing import get_args

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from qdit.quant import native
from qdit.quant.native import place
from qdit.quant.spec import Grid

DTYPES = (torch.float32, torch.bfloat16)
_GRIDS = ("symmetric", "symmetric_full", "unsigned", "asymmetric", "asymmetric_free", "asymmetric_clamped")
assert set(_GRIDS) == set(get_args(Grid))
_operators = torch.library.Library("qdit", "DEF")
_operators.define("cover(Tensor rows, int grid, int low, int high, int shift) -> (Tensor, Tensor, Tensor)")
_operators.define("encode(Tensor x, Tensor scale, Tensor zero_point, int low, int high, int shift) -> Tensor")
_operators.define(
    "product(Tensor x, Tensor x_scale, Tensor? x_offset, Tensor weight, Tensor? lowest, Tensor w_scale, "
    "Tensor? w_offset, Tensor w_sums, Tensor? bias, int out, ScalarType dtype) -> Tensor"
)


def reads(x: Tensor) -> bool:
    """Whether the kernel can make codes of a tensor."""
    return x.device.type == "cpu" and x.dtype in DTYPES and not x.requires_grad and native.available()


def covered(
    rows: Float[Tensor, "rows n"], grid: str, low: int, high: int, shift: int | None
) -> tuple[Int8[Tensor, "rows n"], Float[Tensor, "rows 1"], Float[Tensor, "rows 1"]]:
    """Codes of rows on the grids of their own values (`qdit.quant.affine.affine`), with scales and zero points.

    Args:
        rows: that `reads` accepts.
        grid, low, high: see `qdit.quant.spec.QuantSpec`.
        shift: what codes are less than those of the grid; None: by the row's zero point.
    """
    return torch.ops.qdit.cover(rows, _GRIDS.index(grid), low, high, -1 if shift is None else shift)


def encoded(
    x: Float[Tensor, "rows n"], scale: Tensor, zero_point: Tensor, low: int, high: int, shift: int | None
) -> Int8[Tensor, "rows n"] | None:
    """clamp(round(x / scale) + zero point), less `shift` or else the zero point; None where that is not compiled.

    Scale and zero point have one number, or one a row.
    """
    counts = {scale.numel(), zero_point.numel()}
    if not (reads(x) and x.ndim == 2 and scale.dtype == zero_point.dtype == torch.float32):
        return None
    if counts not in ({1}, {len(x)}):
        return None
    return torch.ops.qdit.encode(x, scale, zero_point, low, high, -1 if shift is None else shift)


def _cover(rows: Tensor, grid: int, low: int, high: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, made = rows.contiguous(), _like_cover(rows, grid, low, high, shift)
    about = native.Codes(*rows.shape, int(rows.dtype == torch.bfloat16), grid, 1, low, high, shift)
    about.x, about.codes, about.scale, about.zero_point = map(place, (rows, *made))
    native.run("qdit_encode", about)
    return made


def _like_cover(rows: Tensor, grid: int, low: int, high: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    numbers = rows.new_empty(len(rows), 1, dtype=torch.float32)
    return rows.new_empty(rows.shape, dtype=torch.int8), numbers, torch.empty_like(numbers)


def _encode(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, shift: int) -> Tensor:
    x, scale, zero_point = x.contiguous(), scale.contiguous(), zero_point.contiguous()
    made, each = _like_encode(x, scale, zero_point, low, high, shift), int(scale.numel() > 1)
    about = native.Codes(*x.shape, int(x.dtype == torch.bfloat16), -1, each, low, high, shift)
    about.x, about.codes, about.scale, about.zero_point = map(place, (x, made, scale, zero_point))
    native.run("qdit_encode", about)
    return made


def _like_encode(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, shift: int) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int8)


def _product(
    x: Tensor,
    x_scale: Tensor,
    x_offset: Tensor | None,
    weight: Tensor,
    lowest: Tensor | None,
    w_scale: Tensor,
    w_offset: Tensor | None,
    w_sums: Tensor,
    bias: Tensor | None,
    out: int,
    dtype: torch.dtype,
) -> Tensor:
    x, x_scale = x.contiguous(), x_scale.contiguous()
    x_offset = None if x_offset is None else x_offset.expand(x_scale.shape).contiguous()
    y = x.new_empty(len(x), out, dtype=dtype)
    groups, wide = w_scale.shape
    each, half = int(len(x_scale) > 1), int(dtype == torch.bfloat16)
    about = native.Product(len(x), out, x.shape[1], groups, wide, x_scale.shape[1], each, half)
    given = {"x": x, "x_scale": x_scale, "x_offset": x_offset, "weight": weight, "lowest": lowest}
    given |= {"w_scale": w_scale, "w_offset": w_offset, "w_sums": w_sums, "bias": bias, "y": y}
    for name, tensor in given.items():
        setattr(about, name, place(tensor))
    native.run("qdit_product", about)
    return y


def _like_product(x: Tensor, *about: object) -> Tensor:
    out, dtype = about[-2:]
    return x.new_empty(len(x), out, dtype=dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]


for _name, _does, _like in (
    ("cover", _cover, _like_cover),
    ("encode", _encode, _like_encode),
    ("product", _product, _like_product),
):
    _operators.impl(_name, _does, "CPU")
    torch.library.register_fake(f"qdit::{_name}", _like, lib=_operators)
