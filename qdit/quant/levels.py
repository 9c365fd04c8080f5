"""Grids of formats with levels: x̂ = level · scale, the level nearest to x / scale (`qdit.quant.formats`, `.scales`)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from qdit.quant.bracket import Bracket
from qdit.quant.formats import FLOATS, Format, format_of
from qdit.quant.scales import SCALES, Scales
from qdit.quant.spec import QuantSpec


@dataclass(frozen=True)
class Levels:
    """A scale a row: `stored` as `scales` keeps it, times the common `whole` where scales have two levels."""

    stored: Float[Tensor, "rows 1"]
    whole: Float[Tensor, "#rows 1"] | None
    format: Format
    scales: Scales
    PER_ROW: ClassVar[tuple[str, ...]] = ("stored",)
    signed: ClassVar[bool] = False

    @property
    def scale(self) -> Float[Tensor, "rows 1"]:
        """What levels are multiplied by."""
        return self.stored if self.whole is None else self.stored * self.whole

    def in_levels(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """Values in units of the scale, a new float32 tensor; with two levels of scales as kernels multiply them."""
        return (x / self.stored if self.whole is None else x * ((1 / self.whole) / self.stored)).float()

    def round(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """The nearest values of the grid, a new tensor."""
        return self.format.nearest(self.in_levels(x)).mul_(self.scale)

    def encode(self, x: Float[Tensor, "rows n"]) -> Integer[Tensor, "rows n"]:
        """The codes of the nearest levels, uint8."""
        return self.format.encode(self.format.nearest(self.in_levels(x)))

    def decode(self, codes: Integer[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """The values that codes stand for."""
        return self.format.decode(codes).mul_(self.scale)

    def scaled(self, factors: Float[Tensor, "#rows 1"]) -> "Levels":
        """The grid with its scales multiplied, as far as they can be kept so."""
        return Levels(self.scales.kept(self.stored * factors), self.whole, self.format, self.scales)

    def bracket(self, x: Float[Tensor, "rows n"]) -> Bracket:
        """See `Bracket`."""
        levels, scaled = self.format.levels(x.device), self.in_levels(x)
        index = torch.searchsorted(levels, scaled, right=True) - 1
        inside = (index >= 0) & (index < len(levels) - 1)
        low = levels[index.clamp(min=0)]
        gap = levels[(index + 1).clamp(0, len(levels) - 1)] - low
        fraction = torch.where(inside, (scaled - low) / torch.where(inside, gap, 1), 0.0)
        up = inside & (self.format.nearest(scaled.clone()) > low)
        return Bracket(low * self.scale, torch.where(inside, gap, 0.0) * self.scale, fraction, up)


def common(magnitude: Float[Tensor, "rows 1"], spec: QuantSpec, items: int = 1) -> Float[Tensor, "#rows 1"] | None:
    """What the scales of a tensor's rows have in common, by the magnitudes of all its values; None where nothing is.

    A range that clips some rows leaves it as it is: which scales can be kept does not depend on the range of others.

    Args:
        magnitude: of each row's own values (`Format.magnitude`), not of a range.
        spec: of the tensor; only floating-point formats have scales of two levels.
        items: tensors whose rows lie one behind the other, each with a common part of its own.
    """
    scales = SCALES[spec.scale]
    if not scales.whole_bits:
        return None
    whole = scales.whole(magnitude.view(items, -1).amax(1, keepdim=True), FLOATS[spec.grid].largest)
    return whole if items == 1 else whole.repeat_interleave(len(magnitude) // items, 0)


def covering_levels(
    rows: Float[Tensor, "rows n"],
    magnitude: Float[Tensor, "rows 1"],
    spec: QuantSpec,
    whole: Float[Tensor, "#rows 1"] | None,
) -> Levels:
    """The grid of a spec that covers each row's magnitude; arguments as `qdit.quant.grid.covering`."""
    format, scales = format_of(spec, rows.shape[-1]), SCALES[spec.scale]
    if whole is None and scales.whole_bits:
        whole = common(format.magnitude(rows), spec)

    def grid(share: float) -> Levels:
        wanted = scales.of_magnitudes(magnitude, format.largest)
        wanted = wanted if share == 1 else wanted / share
        return Levels(scales.kept(wanted if whole is None else wanted / whole), whole, format, scales)

    first, *others = (grid(share) for share in scales.shares)
    return _closest(rows, first, others) if others else first


def _closest(rows: Float[Tensor, "rows n"], best: Levels, others: list[Levels]) -> Levels:
    """For each row the grid of least squared error, the first of equals."""
    least, stored = _squares(rows, best), best.stored
    for grid in others:
        error = _squares(rows, grid)
        better = error < least
        least, stored = torch.where(better, error, least), torch.where(better, grid.stored, stored)
    return Levels(stored, best.whole, best.format, best.scales)


def _squares(rows: Float[Tensor, "rows n"], grid: Levels) -> Float[Tensor, "rows 1"]:
    return grid.round(rows).sub_(rows).square_().sum(-1, keepdim=True)
