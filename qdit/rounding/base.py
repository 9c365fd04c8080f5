"""What a fit asks of a rounding."""

from typing import TYPE_CHECKING, Protocol

from qdit.quant.affine import Rounded

if TYPE_CHECKING:
    from qdit.fit import Fit


class Rounding(Protocol):
    """How weights choose their codes."""

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration data is needed."""
        ...

    def weights(self, fit: "Fit") -> dict[str, Rounded]:
        """The rounded weight [out, in] of every site whose weight is quantized."""
        ...
