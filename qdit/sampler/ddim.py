"""DDIM (Song, Meng & Ermon 2021, arXiv 2010.02502): deterministic at eta 0, as noisy as DDPM at eta 1."""

from typing import Any

import torch
from torch import Tensor

from qdit.model.base import DiffusionModel
from qdit.quant.time_groups import Time
from qdit.sampler.hook import Transition, alphas_bar
from qdit.sampler.sampler import Sampler, respaced


class DDIM(Sampler):
    """DDIM steps between successive visited timesteps, ending at the clean image; a learned variance is dropped."""

    kind = "ddim"

    def check(self, model: DiffusionModel) -> list[str]:
        """Describe each problem; eta is between 0 and 1."""
        wrong = [] if 0 <= self.eta <= 1 else [f"sampler.eta={self.eta}; allowed for DDIM: 0 to 1"]
        return super().check(model) + wrong

    def make_scheduler(self, model: DiffusionModel) -> tuple[Any, list[int], list[int]]:
        """Build diffusers' DDIM on the visited timesteps."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return respaced(DDIMScheduler, model, self.spacing, self.steps, set_alpha_to_one=True)

    def step(self, scheduler: Any, output: Tensor, t: Time, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Take one DDIM step."""
        return scheduler.step(output[:, : x.shape[1]], t, x, eta=self.eta, generator=generators).prev_sample

    @property
    def absorbs(self) -> bool:
        """Whether steps add noise, which is at eta > 0."""
        return self.eta > 0

    def transition(self, scheduler: Any, output: Tensor, t: Time) -> Transition:
        """Eq. 12 and 16 of the paper: the direction pointing to x_t, minus the noise's share in the predicted x_0."""
        bar, after = alphas_bar(scheduler, int(t))
        variance = self.eta**2 * (1 - after) / (1 - bar) * (1 - bar / after)
        gain = max(0.0, 1 - after - variance) ** 0.5 - (after * (1 - bar) / bar) ** 0.5
        return Transition(gain, torch.tensor(variance).sqrt())
