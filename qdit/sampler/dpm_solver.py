"""DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095): a second-order multistep solver; eta 1 is its SDE variant.

The timesteps are those of diffusers' scheduler: `leading` and `linspace` divide the training into N + 1 and leave out
t = 0, because the last step goes from the smallest visited noise level straight to the clean image.
"""

from typing import Any

import torch
from torch import Tensor

from qdit.model.base import DiffusionModel
from qdit.quant.time_groups import Time
from qdit.sampler.sampler import Sampler, schedule_options, train_timesteps
from qdit.sampler.spacing import visited

_ALGORITHMS = {0: "dpmsolver++", 1: "sde-dpmsolver++"}


class DPMSolver(Sampler):
    """DPM-Solver++ of second order; a learned variance is dropped."""

    kind = "dpm_solver"

    def check(self, model: DiffusionModel) -> list[str]:
        """Describe each problem; eta is 0 (the ODE) or 1 (the SDE)."""
        problems = super().check(model)
        if self.eta not in _ALGORITHMS:
            problems.append(
                f"sampler.eta={self.eta}; allowed for DPM-Solver++: 0 (deterministic) or 1 (its SDE variant)"
            )
        if not problems and self.steps == train_timesteps(model):
            problems.append(f"sampler.steps={self.steps}; DPM-Solver++ needs fewer steps than the training had")
        return problems

    def make_scheduler(self, model: DiffusionModel) -> tuple[Any, list[int], list[int]]:
        """Build diffusers' multistep solver; it keeps state between steps."""
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        options: dict[str, Any] = {"solver_order": 2, "algorithm_type": _ALGORITHMS[int(self.eta)]}
        scheduler = DPMSolverMultistepScheduler(**schedule_options(model), **options)
        # diffusers computes the same timesteps, but its `trailing` can gain one by rounding.
        skipped = self.spacing != "trailing"
        told = visited(self.spacing, self.steps + skipped, train_timesteps(model))[skipped:][::-1]
        scheduler.set_timesteps(timesteps=told)
        return scheduler, told, told

    def step(self, scheduler: Any, output: Tensor, t: Time, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Take one multistep update."""
        return scheduler.step(output[:, : x.shape[1]], t, x, generator=generators).prev_sample
