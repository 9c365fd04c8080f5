"""Rotation by a randomized Hadamard matrix: outliers of an input are spread over all its channels.

    x ← x R        W ← W R        R = diag(±1) H / √n        (x R)(W R)ᵀ = x Wᵀ

QuaRot (arXiv 2404.00456) folds most rotations into a language model's weights, because its RMS norm commutes with them.
In a DiT, LayerNorm subtracts the mean and adaLN multiplies channel by channel with factors that depend on the sample,
so that x R has to be computed at run time (`qdit.quant.hadamard`). Only the input of the attention's output layer is
different: its rotation can be folded into the value rows, within each head, because the attention's probabilities
multiply whole heads. That input is rotated head by head, at no cost, wherever a head's width has a Hadamard matrix; the
others are rotated as a whole, or in blocks. In a joint attention (SD3, FLUX's double blocks) it is rotated at run time
where image and text have an output layer each: these read different tensors, and the values of both make each. What the
keys and values of a text read comes straight from a linear layer
(PixArt, Latte), which takes up their rotation as a whole.

The signs depend on the seed and the input's name alone and are stored as a buffer, so that a saved model does not
depend on a random state (released ViDiT-Q draws R anew from the global seed when it loads).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Int8
from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.checked import Checked, Count
from qdit.ledger import RunTime
from qdit.model.base import DiffusionModel, Fold, Site
from qdit.model.roles import meant
from qdit.nn.basis import Rotation
from qdit.quant.hadamard import operations, rotate, split
from qdit.seeding import generator
from qdit.transform.folding import Draft, Drafted
from qdit.transform.inputs import Input, carriers_of, fold_of, sample_rows
from qdit.transform.trial import OutputError, Trial, Way, unchanged


def random_signs(seed: int, name: str, channels: int) -> Int8[Tensor, " channels"]:
    """±1 at random, of one input and seed."""
    drawn = torch.randint(0, 2, (channels,), generator=generator(seed, f"hadamard {name}", 0))
    return (2 * drawn - 1).to(torch.int8)


@dataclass(frozen=True, kw_only=True)
class Hadamard(Drafted):
    """Rotate inputs and weights.

    Args:
        name, roles: see `qdit.transform.folding.Drafted`.
        block: channels that are mixed together at run time; None: all of an input.
        seed: of the signs.
    """

    block: int | None
    seed: int
    needs_calibration = False

    def problems(self, sites: list[Site]) -> list[str]:
        """See `Transform`."""
        found = super().problems(sites)
        widths = {s.in_features: s.name for s in sites if meant(s.role, self.roles)}
        for channels, name in widths.items():
            try:
                split(self.block or channels)
            except ValueError as error:
                found.append(f"transform.block={_text(self.block)}: {error} ({name} has {channels} inputs)")
            else:
                if self.block and channels % self.block:
                    best = channels & -channels
                    found.append(
                        f"transform.block={self.block} does not divide the {channels} inputs of {name}; {best} does"
                    )
        return found

    def carriers(self, model: DiffusionModel, sites: list[Site]) -> dict[str, str | None]:
        """See `Transform`."""
        return carriers_of({each: _mixing(model, each) for each in self.inputs(model, sites)})

    def run_time(self, model: DiffusionModel, sites: list[Site]) -> list[RunTime]:
        """See `Transform`: one bit per channel for the signs, and the additions of the fast transform."""
        left = [each for each in self.inputs(model, sites) if _mixing(model, each) is None]
        return [RunTime(e.quantized[0], e.channels, operations(e.channels, self.block)) for e in left]

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """See `Transform`: nothing is measured."""
        return {}

    def turn(self, model: DiffusionModel, read: Input) -> "partial[Tensor]":
        """The function that computes x R of rows x of an input."""
        signs = random_signs(self.seed, read.name, read.channels).to(model.device)
        fold = _mixing(model, read)
        return partial(rotate, signs=signs, block=fold.mixing if fold else self.block)

    def ways(self, model: DiffusionModel, sites: list[Site]) -> dict[str, tuple[Way, ...]]:
        """See `qdit.transform.chain.Foreseen`: each input is rotated."""
        return {s.name: (self.turn(model, e),) for e in self.inputs(model, sites) for s in e.quantized}

    def edit(self, draft: Draft, sites: list[Site], measured: dict[str, Tensor]) -> None:
        """See `Step`. What is folded reaches all readers of the input, quantized or not."""
        model = draft.model
        for each in self.inputs(model, sites):
            fold, turn = _mixing(model, each), self.turn(model, each)
            for site in each.readers if fold else each.quantized:
                draft.rotate_columns(site.name, turn)
            rotation = Rotation(**turn.keywords)
            if fold is not None:
                draft.rotate_output(fold, each.channels, rotation)
                continue
            for site in each.quantized:
                draft.at_run_time(site.name, rotation)


def _mixing(model: DiffusionModel, read: Input) -> Fold | None:
    """The fold of an input's rotation, within heads or whole, if their width has a Hadamard matrix."""
    fold = fold_of(model, read)
    if fold is None or fold.mixing == 1:
        return None
    try:
        split(fold.mixing)
    except ValueError:
        return None
    return fold


def _text(block: int | None) -> str:
    return "null" if block is None else str(block)


@dataclass(frozen=True, kw_only=True)
class SelectiveHadamard(Hadamard, Checked):
    """Rotate the inputs for which that makes the output error of their layers smaller; at equal errors do not rotate.

    ViDiT-Q (arXiv 2406.02540) chooses the rotated layers by hand-written lists. Rotation costs a fast transform at run
    time, and at moderate imbalance of channels it can do harm: with some scalings, released ViDiT-Q's W4A8 layers are
    up to half a decibel better without it. The run-time cost in the ledger (`run_time`) is that of rotating all inputs,
    an upper bound, because it is asked for before there is data.

    Args:
        name, roles, block: see `Hadamard`.
        seed: of the signs, and of the choice of rows.
        rows: number of rows (tokens) of an input on which outputs are compared; all inputs' are held at once, on the
            CPU.

    Raises:
        UserError: no rows.
    """

    rows: Count = 512
    needs_calibration = True

    def ways(self, model: DiffusionModel, sites: list[Site]) -> dict[str, tuple[Way, ...]]:
        """See `qdit.transform.chain.Foreseen`: as it is, or rotated."""
        return {name: (unchanged, *turn) for name, turn in super().ways(model, sites).items()}

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """1 for each input that is rotated, 0 for each that is not, by its name."""
        inputs = self.inputs(model, sites)
        sampled = sample_rows(model, inputs, collect(), self.rows, self.seed)
        found: dict[str, Tensor] = {}
        for each in inputs:
            one = torch.ones(1, each.channels)
            errors = []
            for way in (unchanged, self.turn(model, each)):
                behind = trial.before({site.name: (way,) for site in each.quantized})
                errors.append(OutputError(behind, model, each, sampled[each.name])(one))
            found[each.name] = (errors[1] < errors[0]).to(torch.int8).cpu()
        return found

    def edit(self, draft: Draft, sites: list[Site], measured: dict[str, Tensor]) -> None:
        """See `Step`."""
        rotated: list[Site] = []
        for each in self.inputs(draft.model, sites):
            for site in each.quantized:
                draft.weight(site.name)  # the layers of a rewrite do not depend on what was chosen
            rotated += each.quantized if measured[each.name].item() else ()
        super().edit(draft, rotated, measured)
