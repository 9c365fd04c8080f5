"""Where values lie between the two neighbouring ones of a grid, for a rounding that learns to go up or down."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Bracket:
    """The two grid values around each value: `origin` and `origin + reach`; `reach` is 0 beyond the grid."""

    origin: Float[Tensor, "rows n"]
    reach: Float[Tensor, "rows n"]
    fraction: Float[Tensor, "rows n"]
    """How far a value lies from the lower neighbour, as a share of the way to the upper one."""
    up: Bool[Tensor, "rows n"]
    """Whether the nearest is the upper one."""
