"""What a fit asks of a rounding."""

from typing import Literal, Protocol

from qdit.fit import Fit
from qdit.quant.grid import Rounded

Inputs = Literal["quantized", "full_precision"]
"""Whose inputs a rounding learns from: the network's as quantized so far, or the original's."""


class Rounding(Protocol):
    """How weights choose their codes."""

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration data is needed."""
        ...

    def weights(self, fit: Fit) -> dict[str, Rounded]:
        """The rounded weight [out, in] of every site whose weight is quantized."""
        ...
