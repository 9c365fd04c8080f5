"""How weights choose their codes."""

from qdit.rounding.nearest import Nearest

__all__ = ["Nearest"]
