"""How weights are rounded to integer codes: to nearest, by GPTQ, or by AdaRound with block reconstruction."""

from qdit.rounding.adaround import AdaRound
from qdit.rounding.base import Rounding
from qdit.rounding.gptq import GPTQ
from qdit.rounding.nearest import Nearest

__all__ = ["GPTQ", "AdaRound", "Nearest", "Rounding"]
