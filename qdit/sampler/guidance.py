"""How a prediction is guided: not at all, by a null condition (arXiv 2207.12598), or by a scale that the network reads.

Which of these a family's stock pipeline does, its adapter says (`guided` of `qdit.model.base.DiffusionModel`). With a
null condition the prediction is null + scale (cond - null), and a learned variance is the conditional one. Whether both
halves go through the network in one call or one after the other matters to memory, and to rounding errors alone.

Left out: what some pipelines do besides (norms over rows of latents, a scale that changes over time), and a null
condition beside a scale that the network reads (FLUX's `true_cfg_scale`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from qdit.model.base import DiffusionModel


class Guidance(ABC):
    """Maps a state to the guided prediction."""

    uses_null: ClassVar[bool] = False
    """Whether the network is shown the null condition."""

    @abstractmethod
    def __call__(
        self, model: DiffusionModel, x: Float[Tensor, "B C *space"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B O *space"]:
        """The guided output in float32, of states, timesteps and conditions on the model's device.

        Its first C channels predict what the network predicts; the others, of a learned variance, are the conditional.
        """


class OneCondition(Guidance):
    """The plain conditional prediction: of no guidance, and of a network that reads the scale (`Sampler.inform`)."""

    def __call__(self, model: DiffusionModel, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """See `Guidance`."""
        return model.denoise(x, t, y).float()


@dataclass(frozen=True)
class WithNull(Guidance):
    """Classifier-free guidance.

    Args:
        scale: 1 is the conditional prediction.
        channels: how many of the latent channels are guided, from the first; None: all.
        null_first: whether the null half comes first in a batch of both.
    """

    scale: float
    channels: int | None
    null_first: bool
    uses_null: ClassVar[bool] = True

    def __call__(self, model: DiffusionModel, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """See `Guidance`."""
        conditional, null = self.halves(model, x, t, y, torch.full_like(y, model.null_class))
        guided = slice(None, model.latent_shape[0] if self.channels is None else self.channels)
        result = conditional.clone()
        result[:, guided] = null[:, guided] + self.scale * (conditional[:, guided] - null[:, guided])
        return result

    @abstractmethod
    def halves(self, model: DiffusionModel, x: Tensor, t: Tensor, y: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
        """The conditional and the null output in float32."""


class OneCall(WithNull):
    """Both halves in one batch of twice the size, as most pipelines do."""

    def halves(self, model: DiffusionModel, x: Tensor, t: Tensor, y: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
        """See `WithNull`."""
        both = torch.cat([null, y] if self.null_first else [y, null])
        first, second = model.denoise(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
        return (second, first) if self.null_first else (first, second)


class TwoCalls(WithNull):
    """The condition, then the null condition, as Wan's pipeline does."""

    def halves(self, model: DiffusionModel, x: Tensor, t: Tensor, y: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
        """See `WithNull`."""
        return model.denoise(x, t, y).float(), model.denoise(x, t, null).float()


class TwoCallsNormed(TwoCalls):
    """As `TwoCalls`, and then each token is brought to the norm of the conditional prediction (Qwen-Image's pipeline).

    The adapter has the tokens: `qdit.model.qwen_image.LoadedQwenImage.normed`.
    """

    def __call__(self, model: DiffusionModel, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """See `Guidance`."""
        conditional, null = self.halves(model, x, t, y, torch.full_like(y, model.null_class))
        adapter: Any = model
        return adapter.normed(null + self.scale * (conditional - null), conditional)
