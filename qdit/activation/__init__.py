"""How the inputs of linear layers (activations) are quantized (`conf/activation/`).

Ranges are dynamic, from the tensor at hand, or static, calibrated; static ones may have two regions (MRQ) and may
differ between groups of timesteps (TGQ).
"""

from qdit.activation.dynamic import DynamicActivation
from qdit.activation.regions import SidedInputs
from qdit.activation.static import StaticActivation
from qdit.activation.time import EqualGroups, RangeGroups, TimeGroups

__all__ = ["DynamicActivation", "EqualGroups", "RangeGroups", "SidedInputs", "StaticActivation", "TimeGroups"]
