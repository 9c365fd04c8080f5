"""How weights are rounded to codes: to nearest, with ranges that learn or not, by GPTQ, or by AdaRound."""

from qdit.rounding.adaround import AdaRound
from qdit.rounding.base import Rounding
from qdit.rounding.boundaries import Boundaries
from qdit.rounding.gptq import GPTQ
from qdit.rounding.nearest import Nearest

__all__ = ["GPTQ", "AdaRound", "Boundaries", "Nearest", "Rounding"]
