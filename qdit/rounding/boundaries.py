"""Ranges of weights and static inputs that blocks learn (PassionSR's second stage, arXiv 2411.17106), codes to nearest.

Block by block, as AdaRound does (`qdit.rounding.reconstruction`), both ends of the range of each row of a weight and of
each static input are moved so that the block's output comes close to full precision's. Grids without a zero point learn
their step, and weights must have one.

Not as in PassionSR: blocks, not the whole network, whose output is compared; gradients are those of one batch (in its
code they are set to zero once an epoch, and add up until then).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import nn

from qdit.checked import Checked, Samples, Whole
from qdit.errors import UserError
from qdit.fit import Fit
from qdit.model.base import Site
from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.grid import Rounded
from qdit.rounding.base import Inputs
from qdit.rounding.nearest import Nearest
from qdit.rounding.reconstruction.ends import SoftEnds, has_ends, learnable_ends
from qdit.rounding.reconstruction.loop import Learning
from qdit.rounding.reconstruction.session import Session


@dataclass(frozen=True, kw_only=True)
class Boundaries(Checked):
    """Units learn the ends of their ranges one after the other.

    Args:
        iterations: optimizer steps a unit; 0 keeps the ranges.
        batch_size: calibration points an iteration.
        rate: Adam's learning rate of the ends of weights, in steps of the weight's grid.
        step_rate: that of static inputs, in steps of theirs; it falls to 0 as a cosine.
        inputs: a unit's: see `qdit.rounding.AdaRound`.

    Raises:
        UserError: a value is out of range.
    """

    iterations: Whole = 200
    batch_size: Samples = 8
    rate: Annotated[float, Ge(0)] = 0.01
    step_rate: Annotated[float, Ge(0)] = 0.01
    inputs: Inputs = "quantized"
    needs_calibration = True

    def weights(self, fit: Fit) -> dict[str, Rounded]:
        """See `Rounding`; `fit`'s static quantizers learn, too.

        Raises:
            UserError: a weight without a zero point; no calibration data, inputs that are not finite, or a damaged file
                of a finished unit.
        """
        if self.iterations == 0:
            return Nearest().weights(fit)
        specs = [fit.weight_spec(site) for site in fit.sites if fit.rounds(site)]
        if grids := {spec.grid for spec in specs if not has_ends(spec)}:
            raise UserError(
                f"rounding=boundaries learns both ends of the range of a weight, and grid={', '.join(sorted(grids))} "
                "has no two; use weight.grid=asymmetric, or rounding=adaround"
            )
        how = Learning(
            iterations=self.iterations,
            low_bits=1,
            batch_size=self.batch_size,
            rate=self.rate,
            step_rate=self.step_rate,
            round_weight=0.0,
            warmup=0.0,
        )
        return _Session(fit, how, lagging=self.inputs == "full_precision", fisher=False).run()


class _Session(Session):
    """A reconstruction in which ranges learn, and codes are the nearest."""

    name = "boundaries"

    def soft(self, site: Site) -> SoftEnds:
        """See `Session`."""
        return SoftEnds(self.fit.weight_of(site), self.fit.grid(site), self.fit.weight_spec(site))

    def learning(self, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """See `Session`."""
        return learnable_ends(layers, self.finished.exact)

    def shape(self, module: StaticQuantizer) -> tuple[int, ...]:
        """See `Session`."""
        return (1, 2) if has_ends(module.spec) else (1, 1)
