"""Calibration data, the points (x_t, t, y) that a method sees, and observers that take statistics of them."""

from qdit.calibration.calibration import (
    NoCalibration,
    NormalCalibration,
    PairedCalibration,
    RandomCalibration,
    UniformCalibration,
)
from qdit.calibration.data import CalibrationData

__all__ = [
    "CalibrationData",
    "NoCalibration",
    "NormalCalibration",
    "PairedCalibration",
    "RandomCalibration",
    "UniformCalibration",
]
