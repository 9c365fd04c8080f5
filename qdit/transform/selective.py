"""Selective rotation: an input is rotated only if that brings its layers' outputs closer to those of full precision.

ViDiT-Q (arXiv 2406.02540) chooses the rotated layers by hand-written lists. Rotation costs a fast transform at run
time, and at moderate imbalance of channels it can do harm: with some scalings, released ViDiT-Q's W4A8 layers are up to
half a decibel better without it.

The run-time cost in the ledger (`run_time`) is that of rotating all inputs, an upper bound, because it is asked for
before there is data.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.checked import Checked, Count
from qdit.model.base import DiffusionModel, Site
from qdit.transform.folding import Draft
from qdit.transform.inputs import sample_rows
from qdit.transform.rotation import Hadamard
from qdit.transform.trial import OutputError, Trial, Way, unchanged


@dataclass(frozen=True, kw_only=True)
class SelectiveHadamard(Hadamard, Checked):
    """Rotate the inputs for which that makes the output error of their layers smaller; at equal errors do not rotate.

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
