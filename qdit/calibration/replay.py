"""Stand-ins for transformer blocks, and what they return: a network that is replayed runs all but its blocks.

What lies between blocks (embedders, reshapes, concatenations) is a model's own code, and differs from one family to the
next. So it is run as it is, with blocks that return what they returned before, or a blank of that structure where
nobody reads it. Blanks are one NaN, seen as a tensor of the right shape: they take no memory, and what depends on them
is noticed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from qdit.storage.scratch import Scratch

Points = slice | Tensor
"""Calibration points by number: a range of them [first, end), or indices [n]."""


class Reached(Exception):
    """The block was reached whose arguments are wanted; the rest of the network need not run."""


def count(points: Points) -> int:
    """How many."""
    return points.stop - points.start if isinstance(points, slice) else len(points)


def rows(points: Points, per_point: int) -> Points:
    """The rows of points in a tensor with so many rows a point, point by point (a video's frames, or its places).

    >>> rows(torch.tensor([2, 0]), 3)
    tensor([6, 7, 8, 0, 1, 2])
    """
    if isinstance(points, slice):
        return slice(points.start * per_point, points.stop * per_point)
    return (points[:, None] * per_point + torch.arange(per_point)).flatten() if per_point > 1 else points


def by_point(x: Tensor, points: int) -> Tensor:
    """`x` with the points as its first dimension: [points · k, …] -> [points, k, …]; unchanged where k is 1."""
    return x if len(x) == points else x.unflatten(0, (points, -1))


@dataclass(frozen=True)
class Blank:
    """A tensor's shape without its values."""

    per_point: int
    """Its rows for a calibration point."""
    row: torch.Size
    dtype: torch.dtype

    def make(self, points: int, device: torch.device) -> Tensor:
        """A tensor [points · per_point, …] without memory of its own: of NaN; of zeros if these are whole numbers."""
        value = torch.nan if self.dtype.is_floating_point else 0
        one = torch.full((1,) * (1 + len(self.row)), value, dtype=self.dtype, device=device)
        return one.expand(points * self.per_point, *self.row)


@dataclass(frozen=True)
class Structure:
    """How the outputs of a block are nested; tensors are blanks."""

    nesting: TreeSpec
    leaves: list[Any]

    def blank(self, points: int, device: torch.device) -> Any:
        """What the block might return for so many points."""
        made = [leaf.make(points, device) if isinstance(leaf, Blank) else leaf for leaf in self.leaves]
        return tree_unflatten(made, self.nesting)


def structure(output: Any, points: int) -> Structure:
    """The structure of what a block returned for so many points, whose rows follow one another in each tensor."""
    leaves, nesting = tree_flatten(output)
    shown = [Blank(len(x) // points, x.shape[1:], x.dtype) if isinstance(x, Tensor) else x for x in leaves]
    return Structure(nesting, shown)


@dataclass(frozen=True)
class Outputs:
    """What a block returned for all calibration points, in memory or on disk, nested and laid out as it was."""

    structure: Structure
    leaves: list[Any]

    @classmethod
    def like(cls, output: Any, points: int, total: int, scratch: Scratch) -> "Outputs":
        """Room for the outputs of `total` points, given those of some."""
        shape = structure(output, points)
        leaves = [
            scratch.empty((total * kind.per_point, *kind.row), x.dtype, _layout(x)) if isinstance(x, Tensor) else x
            for x, kind in zip(tree_leaves(output), shape.leaves, strict=True)
        ]
        return cls(shape, leaves)

    def fits(self, output: Any, points: int) -> bool:
        """Whether there is room for such outputs here, in their layout."""
        mine = [_layout(x) for x in self.leaves if isinstance(x, Tensor)]
        others = [_layout(x) for x in tree_leaves(output) if isinstance(x, Tensor)]
        return structure(output, points) == self.structure and mine == others

    def put(self, points: slice, output: Any) -> None:
        """Keep the outputs of some points."""
        for own, kind, x in zip(self.leaves, self.structure.leaves, tree_leaves(output), strict=True):
            if isinstance(x, Tensor):
                own[rows(points, kind.per_point)].copy_(x)

    def at(self, points: Points, device: torch.device) -> Any:
        """The outputs of some points, in their nesting; of a range, views where the device is the CPU."""
        found = [
            own[rows(points, kind.per_point)].to(device) if isinstance(own, Tensor) else own
            for own, kind in zip(self.leaves, self.structure.leaves, strict=True)
        ]
        return tree_unflatten(found, self.structure.nesting)


def _layout(x: Tensor) -> list[int]:
    """The dimensions in the order in which they lie in memory, the slowest first."""
    return sorted(range(x.ndim), key=lambda d: (-x.stride(d), d))


def has_nan(values: Any) -> bool:
    """Whether there is a NaN in any tensor of these, nested as they may be."""
    return any(bool(x.isnan().any()) for x in tree_leaves(values) if isinstance(x, Tensor) and x.is_floating_point())


@contextmanager
def standing_in(network: nn.Module, calls: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Let `calls` be made in the place of the blocks at these paths; the blocks' own layers stay where they are."""
    blocks = {path: network.get_submodule(path) for path in calls}
    originals = {path: vars(block).get("forward") for path, block in blocks.items()}  # a wrapper may have put one there
    try:
        for path, block in blocks.items():
            block.forward = calls[path]
        yield
    finally:
        for path, block in blocks.items():
            if (original := originals[path]) is None:
                vars(block).pop("forward", None)
            else:
                block.forward = original
