"""What a fit asks of a repair: a last change of quantized layers, behind rounding and before a correction."""

from collections.abc import Mapping
from typing import Protocol

from qdit.fit import Fit
from qdit.nn.linear import QuantLinear


class Repair(Protocol):
    """Changes quantized layers, without their codes and grids. Config only: the fit and its layers are arguments."""

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration data is needed."""
        ...

    def repair(self, fit: Fit, layers: Mapping[str, QuantLinear]) -> None:
        """Change the layers of a fit, by site, in place; they are not installed. `fit.processors` has its attentions.

        What is changed are their biases, which a checkpoint saves with them.
        """
        ...
