"""What a block returns, as one tensor: blocks of a joint attention return the tokens of image and text apart.

Errors of several tensors have to be weighed against each other. Without importances each tensor counts relative to its
mean square in full precision, so that a text with large outputs does not outvote the image. Rows that a mask hides
behind a prompt's end count nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves

from qdit.calibration.data import CalibrationData
from qdit.calibration.replay import Points, by_point, count
from qdit.model.base import DiffusionModel

Part = Float[Tensor, "points rows channels"]


def values_of(output: Any) -> list[Tensor]:
    """The tensors with values in what a module returned, nested as it may be."""
    return [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]


def parts_of(output: Any, points: int) -> list[Part]:
    """The tensors that a block returned for so many points.

    >>> [tuple(x.shape) for x in parts_of((torch.zeros(4, 5, 8), (torch.zeros(2, 3, 8), None)), points=2)]
    [(2, 10, 8), (2, 3, 8)]
    """
    return [x.reshape(points, -1, x.shape[-1]) for x in values_of(output)]


def row_shares(model: DiffusionModel, data: CalibrationData, rows: int) -> Part | None:
    """What the errors of a tensor with so many rows a point weigh, with mean 1, [points, rows, 1]; None: all alike.

    A tensor of a block is told by its number of rows: it hides some if all layers hide some whose inputs have as many.
    """
    attended = [model.attended(site.name, data.y) for site in model.sites() if site.tokens == rows]
    if not attended or any(mask is None for mask in attended):
        return None
    assert attended[0] is not None
    return (attended[0] / attended[0].float().mean()).unsqueeze(-1)


@dataclass(frozen=True)
class Streams:
    """Joins the tensors of a block, so that the squared error of what is joined is the sum of their weighted ones."""

    roots: Sequence[Tensor] | None = None
    """Of the weights of each tensor, [points, rows or 1, channels or 1]; None: there is one tensor, taken as it is."""

    @classmethod
    def relative(cls, parts: Sequence[Part], shares: Sequence[Part | None]) -> "Streams":
        """Each tensor counts relative to its mean square.

        Args:
            parts: what the block returns for all points in full precision.
            shares: what their rows weigh, from `row_shares`.
        """
        total, roots = sum(part.numel() for part in parts), []
        for part, share in zip(parts, shares, strict=True):
            root = torch.ones(len(part), 1, 1) if share is None else share.sqrt()
            squares = [float((own * row.float()).square().sum()) for own, row in zip(root, part, strict=True)]
            square = sum(squares) / part.numel() or 1.0
            roots.append((total / part.numel() / square) ** 0.5 * root)
        return cls(roots if len(roots) > 1 else None)

    def joined(self, output: Any, points: Points) -> Float[Tensor, "points *values"]:
        """What the block returned for some points, as one tensor; float32 where there were several."""
        if self.roots is None:
            (single,) = values_of(output)
            return by_point(single, count(points))
        parts = parts_of(output, count(points))
        weighed = [root[points].to(x.device) * x.float() for root, x in zip(self.roots, parts, strict=True)]
        return torch.cat([x.flatten(1) for x in weighed], 1)
