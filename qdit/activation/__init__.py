"""The grid of the inputs: dynamic (from the tensor at hand) or static (calibrated)."""

from qdit.activation.dynamic import DynamicActivation
from qdit.activation.static import StaticActivation

__all__ = ["DynamicActivation", "StaticActivation"]
