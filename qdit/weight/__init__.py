"""How weights are quantized: granularity, grid and range rule (`conf/weight/`)."""

from qdit.weight.grid import WeightGrid

__all__ = ["WeightGrid"]
