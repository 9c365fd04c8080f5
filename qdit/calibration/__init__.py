"""Calibration data, the points (x_t, t, y) that a method sees, and observers that take statistics of them."""

from qdit.calibration.calibration import (
    NoCalibration,
    NormalCalibration,
    PairedCalibration,
    RandomCalibration,
    UniformCalibration,
)
from qdit.calibration.data import CalibrationData
from qdit.calibration.density import DensityCalibration

__all__ = [
    "CalibrationData",
    "DensityCalibration",
    "NoCalibration",
    "NormalCalibration",
    "PairedCalibration",
    "RandomCalibration",
    "UniformCalibration",
]
