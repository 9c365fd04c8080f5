"""The quantization parameters of static quantizers, as `range=hessian` reads and sets them.

Each grid of a quantizer is a *cell*: it has one for the whole tensor, or one per group of timesteps, or one per head,
or one per group and head, in this order. A cell's *numbers* are the parameters of its code-book: scale and zero point,
or the steps of several regions (`qdit.quant.books`).
"""

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from qdit.hessian.rule import Hessian
from qdit.nn.quantizers import BookQuantizer, StaticQuantizer
from qdit.quant.affine import SMALLEST_SCALE
from qdit.quant.books import Book, LogSqrt2, Renormalised, Scaled, Uniform
from qdit.quant.regions import TwoSided
from qdit.quant.time_groups import group_of

STEP: dict[type, int] = {Uniform: 0, Scaled: 0, TwoSided: 1, LogSqrt2: 0}
"""Which number of a code-book is multiplied; the negative step behind GELU keeps its fixed end (as released)."""


def step_of(book: Book) -> int | None:
    """Which number of a code-book is multiplied; None where candidates are others."""
    return STEP.get(type(book.book if isinstance(book, Renormalised) else book))


def searched(module: nn.Module | None) -> StaticQuantizer | BookQuantizer | None:
    """The quantizer, if it is one with grids that can be searched; dynamic ones have none."""
    return module if isinstance(module, StaticQuantizer | BookQuantizer) else None


def book_of(module: StaticQuantizer | BookQuantizer) -> Book:
    """The code-book of a quantizer."""
    return module.book if isinstance(module, BookQuantizer) else Uniform(module.low, module.high)


def numbers_of(module: StaticQuantizer | BookQuantizer) -> Float[Tensor, "cells numbers"]:
    """The numbers (quantization parameters) of a quantizer's code-book, for each cell."""
    if isinstance(module, BookQuantizer):
        return module.numbers.flatten(0, 1).clone()
    return torch.cat([module.scale, module.zero_point], 1)


def set_numbers(module: StaticQuantizer | BookQuantizer, numbers: Float[Tensor, "cells numbers"]) -> None:
    """Replace the numbers of a quantizer, in place."""
    if isinstance(module, BookQuantizer):
        module.numbers.copy_(numbers.view_as(module.numbers))
    else:
        module.scale.copy_(numbers[:, :1])
        module.zero_point.copy_(numbers[:, 1:])


def groups_of(module: StaticQuantizer | BookQuantizer, timesteps: Real[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The group of each timestep: the cell, where heads share their grids."""
    if isinstance(module, BookQuantizer):
        return group_of(timesteps, module.edges)
    return torch.zeros_like(timesteps, dtype=torch.long)


def heads_of(module: StaticQuantizer | BookQuantizer) -> int:
    """How many heads have grids of their own; 1 where they share them."""
    return module.numbers.shape[1] if isinstance(module, BookQuantizer) else 1


def multiples(
    numbers: Float[Tensor, "cells numbers"], step: int, factors: Float[Tensor, " candidates"]
) -> Float[Tensor, "candidates cells numbers"]:
    """The numbers with one of them multiplied, for each factor."""
    table = numbers.repeat(len(factors), 1, 1)
    table[..., step] = (table[..., step] * factors.to(numbers).unsqueeze(1)).clamp(min=SMALLEST_SCALE)
    return table


def candidates(book: Book, start: Float[Tensor, "cells numbers"], rule: Hessian) -> Float[Tensor, "many cells numbers"]:
    """What is tried for an input: multiples of its step and, where the rule searches schemes, of a symmetric grid's.

    Args:
        book: of the input.
        start: its numbers; they come first, so that they win a tie.
        rule: says the multiples.
    """
    table = multiples(start, STEP[type(book)], rule.factors())
    if rule.scheme == "fixed" or not isinstance(book, Uniform):
        return table
    return torch.cat([table, multiples(symmetric(start, book), 0, rule.factors())])


def symmetric(start: Float[Tensor, "cells 2"], book: Uniform) -> Float[Tensor, "cells 2"]:
    """The numbers of the symmetric grid (`symmetric_full`) of the same codes that reaches as far as the farther end.

    >>> symmetric(torch.tensor([[0.1, 3.0]]), Uniform(0, 15))
    tensor([[0.1600, 8.0000]])
    """
    scale, zero_point = start.unbind(-1)
    levels = book.high - book.low
    reach = scale * torch.maximum(zero_point - book.low, book.high - zero_point)
    middle = torch.full_like(zero_point, book.low + (levels + 1) / 2)
    return torch.stack([(2 * reach / levels).clamp(min=SMALLEST_SCALE), middle], -1)
