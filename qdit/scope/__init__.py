"""Which sites are quantized, by role; what stays in full precision, and why."""

from qdit.scope.scope import Scope

__all__ = ["Scope"]
