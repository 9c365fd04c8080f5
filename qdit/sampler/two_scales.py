"""A stock pipeline of two networks, which take turns and have a scale of guidance each (Wan 2.2 A14B's)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qdit.model.base import DiffusionModel
from qdit.quant.time_groups import Time
from qdit.sampler.guidance import WithNull
from qdit.sampler.pipeline import PipelineSampler
from qdit.sampler.sampler import each_time


@dataclass(kw_only=True)
class TwoScalesSampler(PipelineSampler):
    """See `PipelineSampler`; `guidance` is the scale of the first network, which has the noisy timesteps.

    As in the pipeline, `guidance` decides for both whether the null condition is shown at all.

    Args:
        guidance_2: the scale of the second network.
    """

    guidance_2: float

    def check(self, model: DiffusionModel) -> list[str]:
        """See `Sampler`."""
        problems = super().check(model)
        if not model.turns():
            problems.append(f"sampler={self.name}: guidance_2 is of a second network, and this model has one")
        if self.guidance == 1 and self.guidance_2 != 1:
            problems.append(
                f"sampler.guidance_2={self.guidance_2}; allowed: 1, as sampler.guidance=1 turns guidance off"
            )
        elif self.guidance_2 < 1:
            problems.append(f"sampler.guidance_2={self.guidance_2}; allowed: 1 (the conditional prediction) or more")
        return problems

    def protocol(self, model: DiffusionModel | None = None) -> str:
        """See `Sampler`."""
        return f"{super().protocol(model)}, {self.guidance_2:g} in the second network"

    def predict(
        self, model: DiffusionModel, x: Float[Tensor, "B C *space"], timestep: Time, labels: Int[Tensor, " B"]
    ) -> Float[Tensor, "B O *space"]:
        """See `Sampler`."""
        guide = self.guide(model)
        if isinstance(guide, WithNull) and not bool(model.turns()[0].takes(torch.tensor(timestep))):
            guide = replace(guide, scale=self.guidance_2)
        return guide(model, x, each_time(timestep, labels), labels)
