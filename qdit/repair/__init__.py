"""Repairs of quantized layers behind rounding (`conf/repair/`)."""

from qdit.repair.base import Repair
from qdit.repair.bias import BiasRepair

__all__ = ["BiasRepair", "Repair"]
