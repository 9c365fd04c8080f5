"""A pipeline's own call: its scheduler, guidance and order of steps are diffusers' business (model=pipeline)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor

from qdit.checked import Checked
from qdit.errors import from_problems
from qdit.model.base import DiffusionModel
from qdit.model.pipeline import Called
from qdit.sampler.hook import Hook
from qdit.sampler.sampler import Callback
from qdit.seeding import generator


@dataclass(kw_only=True)
class OwnCall(Checked):
    """What a pipeline's call is told.

    Args:
        name: what tables call it.
        steps: `num_inference_steps`; None is the call's default.
        guidance: `guidance_scale`; None is the call's default.
        call: other words of the call; None is none.
    """

    name: str
    steps: int | None
    guidance: float | None
    call: dict[str, Any] | None = None

    @property
    def words(self) -> dict[str, Any]:
        """Of the call."""
        own = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        return {key: value for key, value in own.items() if value is not None} | (self.call or {})

    def check(self, model: DiffusionModel | Called) -> list[str]:
        """Describe each problem of this option with this model."""
        if not isinstance(model, Called):
            return [f"sampler={self.name} is for model=pipeline; leave it out"]
        found = [] if self.steps is None or self.steps > 0 else [f"sampler.steps={self.steps}; allowed: 1 or more"]
        own = {"generator", "output_type", "latents", model.reads} & (self.call or {}).keys()
        return found + [f"sampler.call has {word}, which qdit gives" for word in sorted(own)]

    def hides_null(self, model: DiffusionModel | Called) -> str | None:
        """Why the call shows no negative prompt, and what to do about it; None if it does."""
        return model.hides_null(self.words) if isinstance(model, Called) else None

    def inform(self, model: DiffusionModel | Called) -> None:
        """Nothing: the call tells its network itself."""

    def protocol(self, model: DiffusionModel | Called | None = None) -> str:
        """Name everything that is told, readably."""
        return "|".join(["own call", *(f"{key}={value}" for key, value in self.words.items())])

    def sample(
        self,
        model: DiffusionModel | Called,
        indices: Sequence[int],
        labels: Int[Tensor, " B"],
        seed: int,
        callback: Callback | None = None,
        hook: Hook | None = None,
    ) -> Float[Tensor, "B C *places"]:
        """What the call hands to its autoencoder; see `qdit.sampler.sampler.Sampler.sample`.

        Sample i draws from one generator, first its noise: that which qdit's own samplers start from.
        """
        if problems := self.check(model):
            raise from_problems(problems, f"sampler {self.name}")
        generators = [generator(seed, "latent", i) for i in indices]
        return cast(Called, model).call(labels, generators, **self.words)
