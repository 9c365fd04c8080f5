"""The grid of the inputs: dynamic (from the tensor at hand) or static (calibrated), in regions, over time."""

from qdit.activation.dynamic import DynamicActivation
from qdit.activation.regions import SidedInputs
from qdit.activation.static import StaticActivation
from qdit.activation.time import EqualGroups, RangeGroups, TimeGroups

__all__ = ["DynamicActivation", "EqualGroups", "RangeGroups", "SidedInputs", "StaticActivation", "TimeGroups"]
