"""Grids of any number format: integers (`qdit.quant.affine`) or levels (`qdit.quant.levels`), with the same methods.

A grid rounds rows (`round`), gives and reads codes (`encode`, `decode`), may have its scales multiplied (`scaled`), and
says between which of its values others lie (`bracket`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from qdit.quant.affine import Affine, affine, code_range
from qdit.quant.formats import format_of
from qdit.quant.levels import Levels, common, covering_levels
from qdit.quant.scales import SCALES
from qdit.quant.spec import QuantSpec, as_rows

RowGrid = Affine | Levels


def extent(rows: Float[Tensor, "rows n"], spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """(lo, hi), both [rows, 1], that a grid of each row's own values covers.

    Its minimum and maximum; of a format with levels, which is symmetric, what its `magnitude` says.
    """
    if not spec.has_levels:
        return rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
    magnitude = format_of(spec, rows.shape[-1]).magnitude(rows)
    return -magnitude, magnitude


def shared(rows: Float[Tensor, "rows n"], spec: QuantSpec, items: int = 1) -> Float[Tensor, "#rows 1"] | None:
    """What all scales of a tensor have in common (of NVFP4, its float32); None where each row has its own alone.

    Args:
        rows: of one or several tensors, one behind the other.
        spec: of the tensors.
        items: how many tensors; each has a common part of its own.
    """
    return common(extent(rows, spec)[1], spec, items) if SCALES[spec.scale].whole_bits else None


def covering(
    rows: Float[Tensor, "rows n"], lo: Tensor, hi: Tensor, spec: QuantSpec, whole: Tensor | None = None
) -> RowGrid:
    """The grid of `spec` that covers each row's range [lo, hi].

    Args:
        rows: of a tensor; of several, one behind the other, if `whole` is given.
        lo, hi: [rows, 1].
        spec: of the tensors.
        whole: what the scales have in common (`shared`), if it is known already or the rows are some of a tensor's.
    """
    if not spec.has_levels:
        return affine(lo, hi, spec)
    return covering_levels(rows, torch.maximum(-lo, hi), spec, whole)


def fake_quantize(x: Float[Tensor, "*shape"], spec: QuantSpec, grid: RowGrid | None = None) -> Float[Tensor, "*shape"]:
    """Round `x` to the grid of `spec`, in `x`'s dtype; without a `grid`, to the one of each row's own values.

    >>> x = torch.tensor([-0.3, -0.1, 0.0, 0.25, 1.0])
    >>> fake_quantize(x, QuantSpec(bits=4))
    tensor([-0.2600, -0.0867,  0.0000,  0.2600,  1.0400])

    Args:
        x: [..., channels]; the first dimension of several counts items, whose grids have nothing in common.
        spec: of the tensor; at 16 bits, and of no values, `x` itself is returned.
        grid: of the rows of `as_rows(x, spec)`.

    Raises:
        UserError: the group size does not divide the channels.
    """
    if spec.is_identity or not x.numel():
        return x
    if spec.columns and grid is None:
        parts, one = x.tensor_split((spec.columns,), -1), replace(spec, columns=None)
        return torch.cat([fake_quantize(part, one) for part in parts], -1)
    rows = as_rows(x, spec).float()
    if grid is None:
        lo, hi = extent(rows, spec)
        grid = covering(rows, lo, hi, spec, common(hi, spec, items=len(x) if x.ndim > 1 else 1))
    return grid.round(rows).to(x.dtype).reshape(x.shape)


def mapped(grid: RowGrid, change: Callable[[Tensor], Tensor]) -> RowGrid:
    """The grid with what it has for each row changed; what its rows share stays."""
    return replace(grid, **{name: change(getattr(grid, name)) for name in grid.PER_ROW})


def joined(grids: Sequence[RowGrid]) -> RowGrid:
    """Grids of as many rows each as one: its rows are the first row of each, then the second of each, and so on."""
    parts = {name: torch.cat([getattr(grid, name) for grid in grids], 1).view(-1, 1) for name in grids[0].PER_ROW}
    return replace(grids[0], **parts)


def tensors_of(grid: RowGrid) -> dict[str, Tensor]:
    """The tensors of a grid, by name; `from_tensors` is the inverse."""
    if isinstance(grid, Affine):
        return {"scale": grid.scale, "zero_point": grid.zero_point}
    return {"scale": grid.stored} | ({"whole": grid.whole} if grid.whole is not None else {})


def shapes_of(rows: int, spec: QuantSpec) -> dict[str, tuple[int, int]]:
    """The shapes of `tensors_of` a weight's grid."""
    if not spec.has_levels:
        return {"scale": (rows, 1), "zero_point": (rows, 1)}
    return {"scale": (rows, 1)} | ({"whole": (1, 1)} if SCALES[spec.scale].whole_bits else {})


def from_tensors(tensors: Mapping[str, Tensor], spec: QuantSpec, length: int) -> RowGrid:
    """The grid of a spec with rows of some length that has these tensors."""
    if not spec.has_levels:
        return Affine(tensors["scale"], tensors["zero_point"], *code_range(spec))
    return Levels(tensors["scale"], tensors.get("whole"), format_of(spec, length), SCALES[spec.scale])


@dataclass(frozen=True)
class Rounded:
    """A quantized weight: codes with their grid; `weight` is the dequantized tensor."""

    codes: Integer[Tensor, "out channels"]
    """uint8, or int8 where codes are signed."""
    grid: RowGrid
    """For each row of `as_rows(weight, spec)`."""
    spec: QuantSpec

    @classmethod
    def of(cls, weight: Float[Tensor, "out channels"], grid: RowGrid, spec: QuantSpec) -> "Rounded":
        """The codes nearest to a weight; the codes of a weight that lies on the grid already give it back bit for bit.

        `grid` is that of the rows of `as_rows(weight, spec)`.

        >>> weight = torch.tensor([[-0.3, -0.1, 0.25, 1.0]])
        >>> spec = QuantSpec(bits=4)
        >>> Rounded.of(weight, affine(weight.amin(1, True), weight.amax(1, True), spec), spec).codes
        tensor([[ 0,  2,  6, 15]], dtype=torch.uint8)
        """
        codes = grid.encode(as_rows(weight, spec)).view(weight.shape)
        return cls(codes.to(torch.int8 if grid.signed else torch.uint8), grid, spec)

    @property
    def weight(self) -> Float[Tensor, "out channels"]:
        """The dequantized weight, float32."""
        codes = as_rows(self.codes, self.spec)
        return self.grid.decode(codes.float() if isinstance(self.grid, Affine) else codes).view(self.codes.shape)
