"""DDIM (Song, Meng & Ermon 2021, arXiv 2010.02502): deterministic at eta 0, as noisy as DDPM at eta 1."""

from typing import Any

import torch
from torch import Tensor

from qdit.model.base import DiffusionModel
from qdit.sampler.sampler import Sampler, respaced


class DDIM(Sampler):
    """DDIM steps between neighbouring visited timesteps, ending at the clean image; a learned variance is dropped."""

    kind = "ddim"

    def check(self, model: DiffusionModel) -> list[str]:
        """Describe each problem; eta is between 0 and 1."""
        wrong = [] if 0 <= self.eta <= 1 else [f"sampler.eta={self.eta}; allowed for DDIM: 0 to 1"]
        return super().check(model) + wrong

    def make_scheduler(self, model: DiffusionModel) -> tuple[Any, list[int], list[int]]:
        """Build diffusers' DDIM on the visited timesteps."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return respaced(DDIMScheduler, model, self.spacing, self.steps, set_alpha_to_one=True)

    def step(self, scheduler: Any, output: Tensor, t: int, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Take one DDIM step."""
        return scheduler.step(output[:, : x.shape[1]], t, x, eta=self.eta, generator=generators).prev_sample
