"""DDPM (Ho, Jain & Abbeel 2020), with improved DDPM's learned variance (Nichol & Dhariwal 2021) where there is one."""

from typing import Any

import torch
from torch import Tensor

from qdit.model.base import DiffusionModel
from qdit.sampler.sampler import Sampler, respaced


class DDPM(Sampler):
    """Ancestral sampling; the variance is interpolated between its bounds by the model, or else the lower bound."""

    kind = "ddpm"

    def check(self, model: DiffusionModel) -> list[str]:
        """Describe each problem; DDPM is eta 1."""
        wrong = [] if self.eta == 1 else [f"sampler.eta={self.eta}; DDPM has eta 1 (for less noise use sampler=ddim)"]
        return super().check(model) + wrong

    def make_scheduler(self, model: DiffusionModel) -> tuple[Any, list[int], list[int]]:
        """Build diffusers' DDPM on the visited timesteps."""
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        variance = "learned_range" if model.learned_variance else "fixed_small"
        return respaced(DDPMScheduler, model, self.spacing, self.steps, variance_type=variance)

    def step(self, scheduler: Any, output: Tensor, t: int, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Take one ancestral step; the last one adds no noise."""
        return scheduler.step(output, t, x, generator=generators).prev_sample
