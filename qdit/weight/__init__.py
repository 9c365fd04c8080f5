"""The grid of the weights."""

from qdit.weight.grid import WeightGrid

__all__ = ["WeightGrid"]
