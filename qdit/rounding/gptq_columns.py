"""GPTQ's arithmetic: the factor of the inverse Hessian, and the column loop that rounds a weight under it.

Frantar et al., "GPTQ" (arXiv 2210.17323), Algorithm 1. With the Hessian of the layer inputs, H = (2/n) Σ x xᵀ, the
columns of W are rounded one after the other, and the columns that are not rounded yet compensate for the error of
column i: with H⁻¹ = Uᵀ U, U upper triangular (the Cholesky factor),

    q = Q(w_i)        e = (w_i - q) / U_ii        W[:, i+1:] -= e U[i, i+1:]

Rows do not interact, so all of them are rounded at once. Updates of columns beyond a lazy block wait for its end, where
they are one matrix product. Two points differ from GPTQ's code and from Q-DiT's, whose results depend on the lazy
block's size: a group's grid is found from weights that have received every earlier update, and the mean that scales the
damping leaves dead channels out. Left out: GPTQ's quantized storage and its CUDA kernels.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qdit.errors import UserError
from qdit.quant.affine import Affine
from qdit.quant.grid import Rounded, RowGrid, joined, mapped, shared
from qdit.quant.levels import Levels
from qdit.quant.spec import QuantSpec, as_rows

log = logging.getLogger("qdit")
FitGrid = Callable[..., RowGrid]
"""(weight, spec, and the common part of scales where they have one) -> the grid of its rows."""
RETRIES = 5  # of the factorization, each with ten times the damping


class InputHessian:
    """H = (2/n) Σ x xᵀ of a layer's inputs, accumulated in float32 over batches; n counts rows (tokens)."""

    def __init__(self) -> None:
        self.rows = 0
        self.sum: Tensor | None = None

    def add(self, x: Float[Tensor, "*rows channels"]) -> None:
        """Accumulate inputs of any leading shape."""
        rows = x.detach().flatten(0, -2).float()
        if self.sum is None:
            self.sum = rows.new_zeros(rows.shape[1], rows.shape[1])
        self.sum.addmm_(rows.T, rows)
        self.rows += len(rows)

    def value(self) -> Float[Tensor, "channels channels"]:
        """The Hessian of all inputs that were added."""
        assert self.sum is not None, "no input was seen"
        return self.sum * (2 / self.rows)


@dataclass(frozen=True)
class Curvature:
    """A Hessian, damped and factored for the column loop; layers that read the same input share it."""

    factor: Float[Tensor, "channels channels"]
    """U, upper triangular with Uᵀ U = H⁻¹, columns in the order in which they are rounded; float64."""
    order: Int[Tensor, " channels"]
    """The input channel rounded at each position."""
    dead: Bool[Tensor, " channels"]
    """Channels whose input is always 0, by channel."""
    by_activity: bool
    """Whether `order` sorts the channels, most active first; groups are then no contiguous columns."""


def curvature(hessian: Float[Tensor, "channels channels"], damping: float, act_order: bool, name: str) -> Curvature:
    """Damp and factor a Hessian: H + damping · mean(diag H) · I, where the mean is over channels that are not dead.

    With H = R Rᵀ, R upper triangular (a Cholesky factorisation from the last row up), U = R⁻¹: H is never inverted.

    Args:
        hessian: symmetric, positive semi-definite.
        damping: share of the mean diagonal; raised tenfold, with a warning, while the factorisation fails.
        act_order: sort channels by falling diag H.
        name: of the site, for messages.

    Raises:
        UserError: the Hessian is not finite, or cannot be factored.
    """
    # Apple's backend has no float64.
    exact = (hessian.cpu() if hessian.device.type == "mps" else hessian).double()
    diagonal = exact.diagonal()
    if not exact.isfinite().all():
        raise UserError(f"gptq: the calibration inputs of {name} are not finite; try dtype=float32")
    dead = diagonal <= 0
    mean = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    natural = torch.arange(len(dead), device=exact.device)
    order = diagonal.argsort(descending=True, stable=True) if act_order else natural
    ordered = exact[order][:, order]
    ordered.diagonal()[dead[order]] = mean  # decoupled from the rest, so any positive value does
    factor = _inverse_factor(ordered, mean, damping, name)
    device = hessian.device
    if device.type == "mps":
        factor = factor.float()
    return Curvature(factor.to(device), order.to(device), dead.to(device), act_order)


def _inverse_factor(hessian: Tensor, mean: float, damping: float, name: str) -> Tensor:
    """U of `hessian` with the least damping that works, from `damping` on."""
    tries = [damping, *(max(damping, 1e-4) * 10**k for k in range(1, RETRIES))]
    for share in tries:
        damped = hessian + share * mean * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        # A factorization of a singular matrix may "succeed" through rounding errors; its result is then enormous.
        if not failed and lower.isfinite().all() and lower.diagonal().amin() > 1e-7 * math.sqrt(mean):
            if share != damping:
                log.warning("gptq: %s needed damping %g instead of %g", name, share, damping)
            identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
            return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    raise UserError(
        f"gptq: the Hessian of {name} cannot be factored, even with damping {tries[-1]:g}; "
        "use more calibration data (calibration.num_samples) or a larger rounding.damping"
    )


class Grids(Protocol):
    """Which grid (scale and zero point of each row) a column is rounded to."""

    def at(self, position: int, columns: Float[Tensor, "channels out"]) -> RowGrid:
        """The grid [out, 1] of the column at `position`, given all columns as they are now."""
        ...

    def whole(self) -> RowGrid:
        """The grid of the weight's rows, once all columns were reached."""
        ...


class FixedGrids:
    """Grids of the original weight; where channels are sorted, GPTQ calls this "static groups"."""

    def __init__(self, grid: RowGrid, spec: QuantSpec, order: Tensor) -> None:
        self.grid = grid
        groups = len(order) // spec.group_size if spec.group_size else 1
        self.grids = [mapped(grid, lambda part, k=k: part.view(-1, groups)[:, [k]].contiguous()) for k in range(groups)]
        self.group_of = (order // (spec.group_size or len(order))).tolist()

    def at(self, position: int, columns: Tensor) -> RowGrid:
        """See `Grids`."""
        return self.grids[self.group_of[position]]

    def whole(self) -> RowGrid:
        """See `Grids`."""
        return self.grid


class FreshGrids:
    """The grid of each group of columns is found from the updated weights, when its first column is reached.

    What the scales of all groups have in common (NVFP4) is that of the original weight.
    """

    def __init__(self, spec: QuantSpec, fit: FitGrid, weight: Float[Tensor, "out channels"]) -> None:
        assert spec.group_size is not None
        self.spec, self.fit, self.size = spec, fit, spec.group_size
        self.grids: list[RowGrid] = []
        whole = shared(as_rows(weight, spec).float(), spec)
        self.common = () if whole is None else (whole,)

    def at(self, position: int, columns: Tensor) -> RowGrid:
        """See `Grids`."""
        if position % self.size == 0:
            self.grids.append(self.fit(columns[position : position + self.size].T, self.spec, *self.common))
        return self.grids[-1]

    def whole(self) -> RowGrid:
        """See `Grids`."""
        return joined(self.grids)


def lazy_blocks(channels: int, group_size: int | None, block_size: int) -> Iterator[tuple[int, int]]:
    """Lazy blocks: ranges of columns whose updates of later columns are applied together, at most `block_size` long.

    A group never starts inside a lazy block and ends beyond it, so that all its columns have received all updates when
    its grid is found.

    >>> list(lazy_blocks(96, 32, 80))
    [(0, 64), (64, 96)]
    >>> list(lazy_blocks(96, 48, 32))
    [(0, 32), (32, 48), (48, 80), (80, 96)]
    """
    span = channels if group_size is None else max(group_size, block_size // group_size * group_size)
    for first in range(0, channels, span):
        last = min(first + span, channels)
        for start in range(first, last, block_size):
            yield start, min(start + block_size, last)


def round_columns(
    weight: Float[Tensor, "out channels"], curve: Curvature, spec: QuantSpec, grid: FitGrid | RowGrid, block_size: int
) -> Rounded:
    """The weight [out, channels] on its grid, rounded column by column under `curve`.

    The result does not depend on `block_size` beyond the order of floating-point sums.

    Args:
        weight: the weight in full precision; columns of dead channels become 0.
        curve: the inputs' curvature.
        spec: granularity and grid; group grids come from up-to-date weights, all others (and those of sorted channels)
            from the original ones.
        grid: of the weight's rows, or a function that finds it, such as `WeightGrid.fit`.
        block_size: columns per lazy block.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    alive = weight.to(dtype).masked_fill(curve.dead, 0)
    columns = alive[:, curve.order].T.contiguous()  # a column is contiguous, and is replaced by its rounded self
    factor = curve.factor.to(dtype)
    fresh = None
    if isinstance(grid, Affine | Levels):
        grids = FixedGrids(grid, spec, curve.order)
    elif curve.by_activity or spec.group_size is None:
        grids = FixedGrids(grid(alive, spec), spec, curve.order)
    else:
        fresh, grids = spec.group_size, FreshGrids(spec, grid, alive)
    for start, end in lazy_blocks(len(columns), fresh, block_size):
        errors = _round_block(columns, factor, grids, start, end)
        columns[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    rounded = torch.empty_like(alive)
    rounded[:, curve.order] = columns.T
    return Rounded.of(rounded, grids.whole(), spec)


def _round_block(columns: Tensor, factor: Tensor, grids: Grids, start: int, end: int) -> Float[Tensor, "block out"]:
    """Round columns start … end in place, and return their scaled errors e."""
    errors = torch.empty_like(columns[start:end])
    pivots = factor.diagonal()[start:end].tolist()
    for i in range(start, end):
        column, error = columns[i], errors[i - start]
        rounded = grids.at(i, columns).round(column.unsqueeze(1)).squeeze(1)
        torch.sub(column, rounded, out=error)
        error.div_(pivots[i - start])
        columns[i + 1 : end].addr_(factor[i, i + 1 : end], error, alpha=-1)
        column.copy_(rounded)
    return errors
