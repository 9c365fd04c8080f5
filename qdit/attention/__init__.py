"""Quantization of attention operands: queries, keys, values and probabilities (`conf/attention/`)."""

from qdit.attention.dynamic import DynamicAttention
from qdit.attention.probabilities import (
    FloatProbabilities,
    Log2Probabilities,
    LogSqrt2Probabilities,
    ReleasedSumProbabilities,
    TwoRegionProbabilities,
    UnsignedProbabilities,
)
from qdit.attention.static import StaticAttention
from qdit.attention.uniform import UniformAttention

__all__ = [
    "DynamicAttention",
    "FloatProbabilities",
    "Log2Probabilities",
    "LogSqrt2Probabilities",
    "ReleasedSumProbabilities",
    "StaticAttention",
    "TwoRegionProbabilities",
    "UniformAttention",
    "UnsignedProbabilities",
]
