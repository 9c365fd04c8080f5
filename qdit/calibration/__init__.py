"""Which (x_t, t, y) a method sees, and the streaming statistics that are taken of them."""

from qdit.calibration.calibration import (
    CalibrationData,
    NoCalibration,
    NormalCalibration,
    PairedCalibration,
    RandomCalibration,
    UniformCalibration,
)

__all__ = [
    "CalibrationData",
    "NoCalibration",
    "NormalCalibration",
    "PairedCalibration",
    "RandomCalibration",
    "UniformCalibration",
]
