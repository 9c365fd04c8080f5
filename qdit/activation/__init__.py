"""How the inputs of linear layers (activations) are quantized (`conf/activation/`).

Ranges are dynamic, from the tensor at hand, or static, calibrated; static ones may have two regions (MRQ) or a power of
two a channel (PTF) or a scale for each cluster of channels (DGQ), and may differ between groups of timesteps (TGQ).
"""

from qdit.activation.channels import ChannelShift
from qdit.activation.clustered import Clustered
from qdit.activation.dynamic import DynamicActivation
from qdit.activation.regions import SidedInputs
from qdit.activation.static import StaticActivation
from qdit.activation.time import EqualGroups, RangeGroups, TimeGroups

__all__ = [
    "ChannelShift",
    "Clustered",
    "DynamicActivation",
    "EqualGroups",
    "RangeGroups",
    "SidedInputs",
    "StaticActivation",
    "TimeGroups",
]
