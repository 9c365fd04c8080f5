"""AdaRound with block reconstruction: the rounding of PTQ4DiT, Q-Diffusion, PTQD and BRECQ.

The network is reconstructed unit by unit (a layer or a block, `qdit.rounding.reconstruction.units`). A unit learns for
each weight whether it rounds up or down, and the step sizes (scales) of its static activation quantizers, so that its
output comes close to the full-precision network's. Sources: Nagel et al., AdaRound (arXiv 2004.10568); Li et al., BRECQ
(arXiv 2102.05426); PTQ4DiT (arXiv 2405.16005) and its release.

What differs from the release: time is linear in depth; the loss does not depend on the number of tokens; data is
shuffled over the whole set; finished units are saved; a learned step size stays positive; a unit that ends further from
its target than nearest rounding (after too few iterations) stays at nearest, with a warning; and the network never
leaves evaluation mode. `drop` is of QDrop (arXiv 2203.05740), `inner` of EDA-DM (arXiv 2401.04585), the
temporal unit of TFMQ-DM (arXiv 2311.16503), `scale_aware` of FP4DiT (arXiv 2503.15465).
"""

from dataclasses import dataclass
from typing import Literal

from qdit.fit import Fit
from qdit.quant.grid import Rounded
from qdit.rounding.base import Inputs
from qdit.rounding.nearest import Nearest
from qdit.rounding.reconstruction.loop import Learning
from qdit.rounding.reconstruction.session import Session

Weighting = Literal["uniform", "fisher"]


@dataclass(frozen=True, kw_only=True, repr=False)
class AdaRound(Learning):
    """Units learn their rounding and their activation step sizes one after the other; see `Learning` for the loop.

    Args:
        inputs: `quantized` inputs are those of the network as quantized so far ("asymmetric" reconstruction, as
            released); `full_precision` ones are the original network's. The target is the original network's output.
        weighting: of the squared error: `uniform`, or `fisher`, by point and channel
            (`qdit.rounding.reconstruction.fisher`).

    Raises:
        UserError: a value is out of range.
    """

    inputs: Inputs = "quantized"
    weighting: Weighting = "uniform"
    needs_calibration = True

    def weights(self, fit: Fit) -> dict[str, Rounded]:
        """The rounded weight [out, in] of every site whose weight is quantized; `fit`'s static quantizers learn too.

        Units that an earlier process finished are read from `fit.folder`.

        Raises:
            UserError: no calibration data, inputs that are not finite, or a damaged file of a finished unit.
        """
        if self.iterations == 0:
            return Nearest().weights(fit)
        return Session(fit, self, lagging=self.inputs == "full_precision", fisher=self.weighting == "fisher").run()
