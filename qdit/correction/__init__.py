"""Corrections of the quantized model's output, fitted to pairs of its and the full-precision model's predictions."""

from qdit.correction.base import Correction, NoiseCorrection, corrected
from qdit.correction.ptqd import PTQD

__all__ = ["PTQD", "Correction", "NoiseCorrection", "corrected"]
