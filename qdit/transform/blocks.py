"""Rotations of blocks of channels at run time, without data: OrbitQuant's and ConvRot's.

* `PermutedHadamard` (OrbitQuant, arXiv 2607.02461): a random permutation, random signs, and Hadamard matrices of the
  largest power of two that divides the channels. A token's direction is then spread over all its channels, whatever the
  step, so that one code-book serves all of them. Read in an independent implementation.
* `RegularHadamard` (ConvRot, arXiv 2512.03673): regular Hadamard matrices of 4^k ≤ `block` channels, without signs; a
  constant input stays constant. Where the block does not divide the channels the paper fills them up with zeros; here
  the largest power of four that divides them is taken.

Nothing is folded into other layers: a permutation would have to cross heads.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from qdit.calibration import CalibrationData
from qdit.checked import Checked, Count
from qdit.ledger import RunTime
from qdit.model.base import DiffusionModel, Site
from qdit.nn.basis import Permuted, Regular
from qdit.quant.hadamard import operations
from qdit.seeding import generator
from qdit.transform.folding import Draft, Drafted
from qdit.transform.inputs import Input
from qdit.transform.rotation import random_signs
from qdit.transform.trial import Trial, Way

INDEX_BITS = 16  # of a channel's place in a permutation


def random_order(seed: int, name: str, channels: int) -> Int[Tensor, " channels"]:
    """A random permutation of an input's channels, of one input and seed."""
    return torch.randperm(channels, generator=generator(seed, f"permutation {name}", 0))


def power_of_four(channels: int, most: int) -> int:
    """The largest power of four that divides the channels, at most `most`.

    >>> power_of_four(1152, 256), power_of_four(1024, 256), power_of_four(6, 256)
    (64, 256, 1)
    """
    found = 1
    while channels % (4 * found) == 0 and 4 * found <= most:
        found *= 4
    return found


class BlockRotation(Drafted):
    """Base: rotate inputs at run time, and the weights that read them."""

    needs_calibration = False

    @abstractmethod
    def turn(self, read: Input) -> nn.Module:
        """What computes x R of rows x of an input, at run time and of the weights."""

    @abstractmethod
    def cost(self, read: Input) -> tuple[int, int]:
        """Bits that are stored for an input, and operations for one row of it."""

    def carriers(self, model: DiffusionModel, sites: list[Site]) -> dict[str, str | None]:
        """See `Transform`: all is done at run time."""
        return {site.name: None for each in self.inputs(model, sites) for site in each.quantized}

    def run_time(self, model: DiffusionModel, sites: list[Site]) -> list[RunTime]:
        """See `Transform`."""
        return [RunTime(each.quantized[0], *self.cost(each)) for each in self.inputs(model, sites)]

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """See `Transform`: nothing is measured."""
        return {}

    def ways(self, model: DiffusionModel, sites: list[Site]) -> dict[str, tuple[Way, ...]]:
        """See `qdit.transform.chain.Foreseen`: each input is rotated."""
        found: dict[str, tuple[Way, ...]] = {}
        for each in self.inputs(model, sites):
            found |= dict.fromkeys((site.name for site in each.quantized), (self.turn(each).to(model.device),))
        return found

    def edit(self, draft: Draft, sites: list[Site], measured: dict[str, Tensor]) -> None:
        """See `Step`."""
        for each in self.inputs(draft.model, sites):
            turn = self.turn(each).to(draft.model.device)
            for site in each.quantized:
                draft.rotate_columns(site.name, turn)
                draft.at_run_time(site.name, turn)


@dataclass(frozen=True, kw_only=True)
class PermutedHadamard(BlockRotation):
    """Permute channels, change signs, and rotate blocks of the largest power of two that divides the channels.

    Args:
        name, roles: see `qdit.transform.folding.Drafted`.
        seed: of the permutation and of the signs.
    """

    seed: int

    def turn(self, read: Input) -> nn.Module:
        """See `BlockRotation`."""
        order = random_order(self.seed, read.name, read.channels)
        return Permuted(order, random_signs(self.seed, read.name, read.channels))

    def cost(self, read: Input) -> tuple[int, int]:
        """See `BlockRotation`: a place and a sign for each channel; additions of the fast transform."""
        channels = read.channels
        return channels * (INDEX_BITS + 1), operations(channels, channels & -channels)


@dataclass(frozen=True, kw_only=True)
class RegularHadamard(BlockRotation, Checked):
    """Rotate blocks by regular Hadamard matrices.

    Args:
        name, roles: see `qdit.transform.folding.Drafted`.
        block: channels that are mixed together, at most.

    Raises:
        UserError: a block below 1.
    """

    block: Count

    def size(self, read: Input) -> int:
        """Channels that are mixed together in an input."""
        return power_of_four(read.channels, self.block)

    def turn(self, read: Input) -> nn.Module:
        """See `BlockRotation`."""
        return Regular(self.size(read))

    def cost(self, read: Input) -> tuple[int, int]:
        """See `BlockRotation`: nothing is stored; four additions a channel for each power of four."""
        return 0, read.channels * 2 * (self.size(read).bit_length() - 1)
