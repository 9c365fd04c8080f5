"""The pipeline's own sampler: the scheduler that a model's folder names, with its own config and spacing of steps.

Text-to-image and video pipelines are published with their sampler, and their numbers are of it. Latents are those of
the stock diffusers pipeline, bit for bit, when it is given the same noise: the null half of guidance comes first, and
the timesteps, the last step and the variance are the scheduler's own business.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qdit.errors import UserError
from qdit.model.base import DiffusionModel
from qdit.model.checks import COGVIDEOX_SCHEDULERS, SCHEDULERS
from qdit.quant.time_groups import Time
from qdit.sampler.remembering import Remembering
from qdit.sampler.sampler import Sampler, train_timesteps


def reads_eta(scheduler: Any) -> bool:
    """Whether a step of diffusers' scheduler of this name has an eta that changes it: CogVideoX's never read theirs."""
    import diffusers

    if scheduler in COGVIDEOX_SCHEDULERS:
        return False
    step = getattr(getattr(diffusers, str(scheduler), None), "step", None)
    return step is not None and "eta" in inspect.signature(step).parameters


class PipelineSampler(Sampler):
    """Steps, guidance and eta of a stock pipeline; a learned variance is dropped behind guidance."""

    kind = "pipeline"
    null_first = True

    def check(self, model: DiffusionModel) -> list[str]:
        """Describe each problem of this option, alone and with this model."""
        problems = []
        if not 1 <= self.steps <= (total := train_timesteps(model)):
            problems.append(f"sampler.steps={self.steps}; allowed: 1 to {total}, the steps of the training")
        if model.guided == "embedded" and self.guidance < 0:
            problems.append(f"sampler.guidance={self.guidance}; allowed: 0 or more, which the network reads")
        elif model.guided != "embedded" and self.guidance < 1:
            problems.append(f"sampler.guidance={self.guidance}; allowed: 1 (no guidance) or more")
        if not 0 <= self.eta <= 1:
            problems.append(f"sampler.eta={self.eta}; allowed: 0 to 1")
        elif self.eta and not reads_eta(name := model.scheduler_config().get("_class_name")):
            problems.append(f"sampler.eta={self.eta}; the model's scheduler, {name}, reads none: use sampler.eta=0")
        if self.guided_channels is not None:
            problems.append(f"sampler.guided_channels={self.guided_channels}; a stock pipeline guides all (null)")
        if self.spacing != "scheduler":
            problems.append(f"sampler.spacing={self.spacing}; a stock pipeline has its scheduler's own (scheduler)")
        return problems

    def make_scheduler(self, model: DiffusionModel) -> tuple[Any, Sequence[Time], Sequence[Time]]:
        """Build the scheduler that the model's folder names, with its own timesteps.

        Raises:
            UserError: qdit does not know it.
        """
        import diffusers

        config = model.scheduler_config()
        if (name := config.get("_class_name")) not in SCHEDULERS:
            raise UserError(f"the model's scheduler is {name}; sampler=pipeline knows {', '.join(SCHEDULERS)}")
        scheduler = getattr(diffusers, name).from_config(config)
        model.set_timesteps(scheduler, self.steps)
        if hasattr(scheduler, "set_begin_index"):
            # Whole timesteps may be equal, and diffusers, told none, starts at the second of two: one step too few.
            scheduler.set_begin_index(0)
        told = scheduler.timesteps.tolist()
        if "timestep_back" in inspect.signature(scheduler.step).parameters:
            scheduler = Remembering(scheduler)
        return scheduler, told, told

    def step(self, scheduler: Any, output: Tensor, t: Time, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Take one step as the pipeline does; eta and noise reach the schedulers that read them."""
        given, read = {"generator": generators, "eta": self.eta}, inspect.signature(scheduler.step).parameters
        options: dict[str, Any] = {key: value for key, value in given.items() if key in read}
        return scheduler.step(output[:, : x.shape[1]], t, x, return_dict=False, **options)[0]
