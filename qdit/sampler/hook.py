"""The hook on a sampler's update: it may change the prediction, and lets the step's noise absorb the remaining error.

A step of DDIM or DDPM is x_{t-1} = (terms in x_t) + gain ε + std z. If ε carries a Gaussian error of variance v that is
independent of z, then the variance of x_{t-1} is too large by gain² v. The variance of the noise that the step adds is
reduced by as much (PTQD's variance schedule calibration, arXiv 2305.10657, section 4.2):

    std'² = max(0, std² - gain² v)
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.quant.time_groups import Time


class Hook(Protocol):
    """Stands between the (guided) denoiser and the scheduler."""

    def output(self, output: Float[Tensor, "B O h w"], timestep: Time) -> Float[Tensor, "B O h w"]:
        """The changed guided output; `timestep` is the one that was given to the model."""
        ...

    def error(self, timestep: Time) -> float:
        """The variance of the error that is left in the predicted noise, which the step's noise should absorb."""
        ...


@dataclass(frozen=True)
class Transition:
    """The two coefficients of a step that matter for the error of a prediction."""

    gain: float
    """Factor of the predicted noise in the next state."""
    std: Float[Tensor, "*state"]
    """Of the step's own noise: a number, or one for each element of the state."""


def alphas_bar(scheduler: Any, t: int) -> tuple[float, float]:
    """ᾱ of step `t` of a respaced diffusers scheduler, and of the next step in sampling order (1 after the last)."""
    bars = scheduler.alphas_cumprod
    return bars[t].item(), bars[t - 1].item() if t > 0 else 1.0


def absorbed(
    x: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"], transition: Transition, error: float
) -> Float[Tensor, "B C h w"]:
    """The next state `x` with less of the `noise` that made it, so that its variance is what it should be."""
    std = transition.std
    kept = (std.square() - transition.gain**2 * error).clamp(min=0).sqrt()
    return x - (std - kept) * noise


def upcoming(generators: list[torch.Generator], state: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """The noise that the generators will give next for a state; they themselves are not advanced."""
    twins = [torch.Generator().set_state(g.get_state()) for g in generators]
    return torch.stack([torch.randn(state.shape[1:], generator=twin) for twin in twins]).to(state.device)
