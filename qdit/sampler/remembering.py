"""A scheduler of two steps whose memory its pipeline keeps, as one that keeps its own.

diffusers' CogVideoXDPMScheduler (DPM-Solver++ of order 2 on a stochastic equation, arXiv 2211.01095) is told the
prediction of the last step and its time with each call. Its noise is drawn for clips with frames before channels.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class Remembering:
    """A scheduler that is stepped as all others are; it serves one trajectory.

    Args:
        scheduler: a CogVideoXDPMScheduler.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.before: int | None = None
        """The timestep of the last step."""
        self.predicted: Tensor | None = None
        """What the last step took the clips for, frames before channels."""

    def step(
        self,
        output: Float[Tensor, "B C F h w"],
        t: int,
        x: Float[Tensor, "B C F h w"],
        generator: list[torch.Generator] | None = None,
        return_dict: bool = False,
    ) -> tuple[Float[Tensor, "B C F h w"]]:
        """The next, less noisy clips; each draws from its own generator."""
        given = output.transpose(1, 2), self.predicted, t, self.before, x.transpose(1, 2)
        made, self.predicted = self.scheduler.step(*given, generator=generator, return_dict=return_dict)
        self.before = t
        return (made.transpose(1, 2),)
