"""Scores of candidate grids for one operand of matrix products, all candidates at once: pure functions on tensors.

Of the two operands of z = x y the grid of one is searched (it *moves*), that of the other is fixed. With x̂ and ŷ the
quantized operands, the score is

    Σ w e²        e = x y - x̂ ŷ = x (y - ŷ) - (x̂ - x) ŷ

with the importance w of the entries of z (`qdit.hessian.importance`). For a linear layer's input, y is the weight that
all items (rows) share, and there is one product for each layer that reads the input. Queries, keys, values and
probabilities have one product per item, a calibration point and head. To search y instead of x, both and w are
transposed.

Scoring every candidate on everything would repeat all products for each. So candidates are ranked on a sample of the
items, and for linear layers with a few random sums of outputs instead of all outputs; the best ones and the current one
are then compared by the score itself on all items. With few items, all candidates are.

Candidates run in chunks that stay in a processor's cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qdit.quant.books import Book
from qdit.seeding import generator

CHUNK_VALUES = {"cpu": 2**18, "cuda": 2**24}  # of an operand or of its products, held at once: 1 or 64 MiB
SAMPLE_ROWS = 512  # on which candidates are ranked: these, or a quarter as many per cell, or one item in SAMPLE_SHARE
SAMPLE_SHARE = 32
SHORTLIST = 4  # candidates that are compared on all items, beside the start
SUMS = 64  # random sums of outputs with which linear layers are ranked


def chunk_values(device: torch.device) -> int:
    """How many values are held at once."""
    return CHUNK_VALUES["cpu" if device.type == "cpu" else "cuda"]


@dataclass(frozen=True)
class Moving:
    """The operand whose grids are searched: one matrix for each item."""

    values: Float[Tensor, "items rows inner"]
    """In full precision; rows of a layer in random order, operands of attentions point by point and head by head."""
    book: Book
    cells: Int[Tensor, " items"]
    """Which of the grids is an item's: they differ by head and by group of timesteps."""

    def piece(self, items: slice | Tensor) -> "Moving":
        """Some of the items."""
        return replace(self, values=self.values[items], cells=self.cells[items])

    def rounded(
        self, numbers: Float[Tensor, "candidates cells numbers"]
    ) -> Float[Tensor, "items candidates rows inner"]:
        """On the grids of each candidate, whose code-books have these numbers."""
        own = numbers[:, self.cells].permute(2, 1, 0)
        return self.book(self.values.unsqueeze(1), *own[..., None, None])


@dataclass(frozen=True)
class Other:
    """The operand whose grid is fixed, and how much an error in the product matters."""

    rounded: Float[Tensor, "*items inner columns"]
    """On its grid; one matrix for all items, or one for each."""
    change: Float[Tensor, "*items inner columns"]
    """What was lost on the grid: the full-precision values less `rounded`."""
    weights: Float[Tensor, "items rows columns"]
    """Importance of the product's entries; one column if those of a row are equal."""
    counted: Float[Tensor, "items #rows #columns"] | None = None
    """1 for the entries that a judge of whole products looks at, 0 for those that nothing depends on; None: all."""

    def piece(self, items: slice | Tensor) -> "Other":
        """For some of the items."""
        counted = None if self.counted is None else self.counted[items]
        if self.rounded.ndim == 2:
            return replace(self, weights=self.weights[items], counted=counted)
        return Other(self.rounded[items], self.change[items], self.weights[items], counted)

    def onto(self, outputs: Float[Tensor, "columns fewer"]) -> "Other":
        """With the product's columns replaced by combinations of them."""
        return replace(self, rounded=self.rounded @ outputs, change=self.change @ outputs)

    def score(
        self, moved: Float[Tensor, "items candidates rows inner"], base: Float[Tensor, "items rows columns"]
    ) -> Float[Tensor, "items candidates"]:
        """The weighted squares, for the change x̂ - x of each candidate and `base` = x (y - ŷ)."""
        error = (moved.flatten(1, 2) @ self.rounded).unflatten(1, moved.shape[1:3])
        squares = error.sub_(base.unsqueeze(1)).square_()
        weights = self.weights.unsqueeze(1)
        if weights.shape[-1] == 1:
            return (squares.sum(-1) * weights[..., 0]).sum(-1)
        return squares.mul_(weights).sum((-1, -2))


def reached(other: Other) -> Other:
    """The same scores up to a constant, with fewer columns, where a shared operand has more columns than rows.

    The products x̂ ŷ lie in a space with as many dimensions as x has channels. The part of the error outside of that
    space does not depend on the candidate.
    """
    inner, columns = other.rounded.shape[-2:]
    return other.onto(torch.linalg.qr(other.rounded.T).Q) if columns > inner else other


def summed(other: Other, seed: int) -> Other:
    """Scores from `SUMS` columns, each a sum of all columns with random signs; their expectation is the score."""
    columns = other.rounded.shape[-1]
    if columns <= SUMS:
        return other
    signs = torch.randint(0, 2, (columns, SUMS), generator=generator(seed, "hessian sums", columns)) * 2.0 - 1.0
    return other.onto(signs.to(other.rounded) / SUMS**0.5)


Judge = Callable[[Moving, Sequence[Other], Tensor], Float[Tensor, "candidates cells"]]
"""What of (operand, others, candidates) finds how bad each candidate is, for each cell; float64."""


@dataclass(frozen=True)
class Piece:
    """Some of the items, for which some candidates at a time fit into memory."""

    moving: Moving
    others: Sequence[Other]
    member: Float[Tensor, "items cells"]
    """1 where an item's grid is the cell's, float64."""
    some: list[slice]
    """Of the candidates."""


def pieces(
    moving: Moving, others: Sequence[Other], tried: Float[Tensor, "candidates cells numbers"]
) -> Iterator[Piece]:
    """The items in pieces whose products stay in a processor's cache; arguments as `errors`."""
    items, rows, inner = moving.values.shape
    width = rows * max(inner, *(other.rounded.shape[-1] for other in others))
    limit = chunk_values(tried.device)
    count = max(1, limit // width)
    for first in range(0, items, count):
        part = slice(first, first + count)
        here = moving.piece(part)
        some = max(1, limit // (len(here.values) * width))
        member = F.one_hot(here.cells, tried.shape[1]).double()
        slices = [slice(low, low + some) for low in range(0, len(tried), some)]
        yield Piece(here, [other.piece(part) for other in others], member, slices)


def errors(
    moving: Moving, others: Sequence[Other], tried: Float[Tensor, "candidates cells numbers"]
) -> Float[Tensor, "candidates cells"]:
    """The score of each candidate, summed over the items of a cell and over all products; float64.

    Args:
        moving: the operand.
        others: of the products that it enters.
        tried: numbers of the code-book.
    """
    totals = torch.zeros(tried.shape[:2], dtype=torch.float64, device=tried.device)
    for piece in pieces(moving, others, tried):
        here = piece.moving
        bases = [here.values @ other.change for other in piece.others]
        for some in piece.some:
            moved = here.rounded(tried[some]).sub_(here.values.unsqueeze(1))
            scores = [other.score(moved, base).double() for other, base in zip(piece.others, bases, strict=True)]
            totals[some] += torch.stack(scores).sum(0).T @ piece.member
    return totals


def in_turn(member: Int[Tensor, " n"], count: int) -> Int[Tensor, " n"]:
    """The order in which the first of each group comes first, then the second of each, …

    >>> in_turn(torch.tensor([0, 0, 0, 1, 2, 1]), 3).tolist()
    [0, 3, 4, 1, 5, 2]
    """
    turns = F.one_hot(member, count).cumsum(0).gather(1, member.unsqueeze(1)).squeeze(1)
    return turns.argsort(stable=True)


def shortlist(
    moving: Moving,
    others: Sequence[Other],
    table: Float[Tensor, "candidates cells numbers"],
    judge: Judge | None = None,
) -> Float[Tensor, "fewer cells numbers"]:
    """The first candidate and the best ones on a sample, for each cell by itself; with few items, all.

    Every cell has items in the sample, though neighbours (the heads of a point) are of one group of timesteps. Of a
    cell they are the first: where heads share a grid, those of its first point and heads.

    Args:
        moving: the operand.
        others: of the products that it enters, or cheaper stand-ins.
        table: the candidates.
        judge: says how bad a candidate is; None: `errors`.
    """
    items, rows, _ = moving.values.shape
    cells = table.shape[1]
    sample = max(ceil(SAMPLE_ROWS * max(1, cells / 4) / rows), 2 * cells, items // SAMPLE_SHARE)
    if len(table) <= SHORTLIST + 1 or 2 * sample > items:
        return table
    few = in_turn(moving.cells, cells)[:sample]
    scores = (judge or errors)(moving.piece(few), [other.piece(few) for other in others], table)
    ranked = scores.argsort(stable=True, dim=0)[:SHORTLIST].unsqueeze(-1)
    return torch.cat([table[:1], table.gather(0, ranked.expand(-1, -1, table.shape[-1]))])


def best(
    moving: Moving,
    others: Sequence[Other],
    tried: Float[Tensor, "candidates cells numbers"],
    judge: Judge | None = None,
) -> Float[Tensor, "cells numbers"]:
    """The candidate that `judge` (None: `errors`) finds least bad, for each cell by itself; the first of equal ones."""
    found = (judge or errors)(moving, others, tried).argmin(0)
    return tried[found, torch.arange(len(found), device=found.device)]
