"""Respacing: which of the training's timesteps a sampler visits, and the shorter diffusion process that they form.

DiT and ADM sample with N steps by building a diffusion of N steps whose cumulative alphas are those of the visited
timesteps; the network is given the original timesteps. A diffusers scheduler on the recomputed betas, run from N-1 to
0, is that diffusion exactly. (diffusers' own `timestep_spacing="linspace"` visits DiT's timesteps too, but its DDIM
then steps to t - 1000//N instead of to the next visited timestep.)
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Spacing = Literal["leading", "linspace", "trailing", "scheduler"]
SPACINGS: tuple[Spacing, ...] = ("leading", "linspace", "trailing")


def visited(spacing: Spacing, steps: int, total: int) -> list[int]:
    """List the visited timesteps, ascending.

    >>> visited("leading", 4, 1000), visited("linspace", 4, 1000), visited("trailing", 4, 1000)
    ([0, 250, 500, 750], [0, 333, 666, 999], [249, 499, 749, 999])

    `leading` is ADM's and DiT's "ddimN" and the diffusers default; `linspace` is DiT's plain "N", both ends included
    (the protocol of the DiT papers); `trailing` is that of Lin et al. 2024 (arXiv 2305.08891).
    """
    positions = {
        "leading": np.arange(steps) * (total // steps),
        "linspace": np.linspace(0, total - 1, steps).round(),
        "trailing": (np.arange(1, steps + 1) * (total / steps)).round() - 1,
    }
    return positions[spacing].astype(int).tolist()


def respaced_betas(betas: Float[Tensor, " T"], timesteps: Sequence[int]) -> list[float]:
    """Return the betas of the diffusion that visits only `timesteps` (ascending): 1 - ᾱ_i / ᾱ_{i-1}, in float64."""
    kept = (1 - betas.double()).cumprod(0)[torch.tensor(timesteps)]
    previous = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    return (1 - kept / previous).tolist()
