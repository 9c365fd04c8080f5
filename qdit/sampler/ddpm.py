"""DDPM (Ho et al., arXiv 2006.11239), with improved DDPM's learned variance (Nichol & Dhariwal, arXiv 2102.09672)."""

import math
from typing import Any

import torch
from torch import Tensor

from qdit.model.base import DiffusionModel
from qdit.quant.time_groups import Time
from qdit.sampler.hook import Transition, alphas_bar
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

    def step(self, scheduler: Any, output: Tensor, t: Time, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Take one ancestral step; the last one adds no noise."""
        return scheduler.step(output, t, x, generator=generators).prev_sample

    @property
    def absorbs(self) -> bool:
        """Always true; only the last step adds no noise."""
        return True

    def transition(self, scheduler: Any, output: Tensor, t: Time) -> Transition:
        """The posterior's mean and standard deviation (Ho et al. eq. 6 and 7; Nichol & Dhariwal eq. 15)."""
        bar, after = alphas_bar(scheduler, int(t))
        beta = 1 - bar / after
        gain = -beta * (after / (bar * (1 - bar))) ** 0.5
        if t == 0:
            return Transition(gain, torch.tensor(0.0))
        lower = math.log(beta * (1 - after) / (1 - bar))
        if scheduler.config.variance_type != "learned_range":
            return Transition(gain, torch.tensor(lower / 2).exp())
        share = (output.chunk(2, dim=1)[1] + 1) / 2
        return Transition(gain, ((share * math.log(beta) + (1 - share) * lower) / 2).exp())
