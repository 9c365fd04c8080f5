"""Targets of `range=hessian`: the losses whose gradients weigh the errors of layers' outputs, or none.

How gradients become importances is in `qdit.hessian.importance`.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.checked import Checked, Count
from qdit.errors import UserError
from qdit.hessian.importance import Gradient, Importance, even_importances
from qdit.model.base import Attention, DiffusionModel, Site
from qdit.model.checks import predicts
from qdit.seeding import noise

log = logging.getLogger("qdit")


class Target(Protocol):
    """How much errors in the outputs of layers matter. Config only."""

    def importances(
        self,
        model: DiffusionModel,
        data: CalibrationData,
        sites: Sequence[Site],
        seed: int,
        attentions: Sequence[Attention] = (),
    ) -> dict[str, Importance]:
        """The importance of each site's output, and of each attention's; arguments as `output_importances`."""
        ...


def drawn(like: Tensor, points: Tensor, stream: str, seed: int) -> Tensor:
    """Normal noise shaped as `like`; each point's row comes from a random stream of its own."""
    return torch.stack([noise(seed, stream, int(point), like.shape[1:]) for point in points]).to(like)


@dataclass(frozen=True, kw_only=True)
class Probe(Checked, Gradient):
    """The product of the prediction with normal noise v: E (Jᵀv)² is the diagonal of JᵀJ, J the output's Jacobian.

    That is the Hessian of half the squared distance to the full-precision prediction (Gauss-Newton, exact there).

    Args:
        probes: draws of v per point, whose squares are averaged.

    Raises:
        UserError: no probes.
    """

    probes: Count = 2

    def points(self, model: DiffusionModel, data: CalibrationData, seed: int) -> CalibrationData:
        """See `Gradient`."""
        return data

    def slopes(self, output: Tensor, points: Tensor, seed: int) -> Iterator[Tensor]:
        """See `Gradient`."""
        for probe in range(self.probes):
            yield drawn(output, points, f"hessian probe {probe}", seed)


@dataclass(frozen=True, kw_only=True)
class DiffusionLoss(Gradient):
    """The distance of the prediction to the noise in its input: the diffusion loss, as the paper is read literally.

    It is not known which noise is in a point of a sampling trajectory. So the noise that the network predicts there,
    ε̂, is replaced by a new draw ε at the same timestep: x + σ (ε - ε̂).
    """

    def points(self, model: DiffusionModel, data: CalibrationData, seed: int) -> CalibrationData:
        """See `Gradient`.

        Raises:
            UserError: the model does not predict noise.
        """
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        config = model.scheduler_config()
        if (kind := predicts(config)) != "epsilon":
            raise UserError(f"target diffusion_loss: this model predicts {kind}, not noise; use target=probe")
        scheduler: Any = DDPMScheduler.from_config(config)
        bars = scheduler.alphas_cumprod
        parts, first = [], 0
        with torch.no_grad():
            for x, t, y in data.batches(model):
                predicted = model.denoise(x, t, y)[:, : x.shape[1]]
                sigma = (1 - bars[t.cpu()]).sqrt().to(x).view(-1, *(1,) * (x.ndim - 1))
                added = drawn(x, torch.arange(first, first + len(x)), "hessian noise", seed)
                parts.append((x + sigma * (added - predicted)).float().cpu())
                first += len(x)
        return replace(data, x=torch.cat(parts))

    def slopes(self, output: Tensor, points: Tensor, seed: int) -> Iterator[Tensor]:
        """See `Gradient`."""
        yield output - drawn(output, points, "hessian noise", seed)


@dataclass(frozen=True, kw_only=True)
class LegacyKL(Gradient):
    """The release's target: the divergence of the prediction's softmax over the latents' width from its own.

    Its gradient is 0, so that what is squared is floating-point error; it is here to reproduce the release.
    """

    def points(self, model: DiffusionModel, data: CalibrationData, seed: int) -> CalibrationData:
        """See `Gradient`."""
        log.warning("target legacy_kl: its gradient is zero at full precision; ranges are weighted by rounding noise")
        return data

    def slopes(self, output: Tensor, points: Tensor, seed: int) -> Iterator[Tensor]:
        """See `Gradient`."""
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            loss = F.kl_div(leaf.log_softmax(-1), output.detach().softmax(-1), reduction="batchmean")
            yield torch.autograd.grad(loss, leaf)[0]


@dataclass(frozen=True, kw_only=True)
class Unweighted:
    """No loss: errors of all outputs count alike, as in AWQ's search for clipped ranges (arXiv 2306.00978)."""

    def importances(
        self,
        model: DiffusionModel,
        data: CalibrationData,
        sites: Sequence[Site],
        seed: int,
        attentions: Sequence[Attention] = (),
    ) -> dict[str, Importance]:
        """See `Target`."""
        return even_importances(len(data.x), sites, attentions)
