"""What `range=hessian` reads of static input quantizers, and sets in them: one grid or one a group of timesteps."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qdit.activation.quantizers import BookQuantizer, StaticQuantizer
from qdit.hessian.scores import InputGrid
from qdit.quant.affine import SMALLEST_SCALE
from qdit.quant.books import Uniform
from qdit.quant.regions import TwoSided
from qdit.quant.time_groups import group_of

STEP = {Uniform: 0, TwoSided: 1}
"""Which number of a code-book is searched; the negative step behind GELU keeps its fixed end (as released)."""


def numbers_of(module: nn.Module) -> Float[Tensor, "groups numbers"]:
    """The numbers of a static quantizer's code-book, for each group of timesteps."""
    if isinstance(module, BookQuantizer):
        return module.numbers[:, 0]
    assert isinstance(module, StaticQuantizer), f"{type(module).__name__} has no grid that could be searched"
    return torch.cat([module.scale, module.zero_point], 1)


def input_grid(module: nn.Module | None, timesteps: Int[Tensor, " n"]) -> InputGrid | None:
    """The grid of an input's rows, which were seen at these timesteps; None where it is not static."""
    if isinstance(module, StaticQuantizer):
        return InputGrid(Uniform(module.low, module.high), numbers_of(module), 0, torch.zeros_like(timesteps))
    if isinstance(module, BookQuantizer):
        groups = group_of(timesteps, module.edges)
        return InputGrid(module.book, numbers_of(module), STEP[type(module.book)], groups)
    return None


def multiply(module: nn.Module | None, factors: Float[Tensor, " groups"]) -> None:
    """Multiply the searched step of a static quantizer, in place."""
    if isinstance(module, BookQuantizer):
        step = module.numbers[:, 0, STEP[type(module.book)]]
    else:
        assert isinstance(module, StaticQuantizer)
        step = module.scale[:, 0]
    step.mul_(factors.to(step)).clamp_(min=SMALLEST_SCALE)
