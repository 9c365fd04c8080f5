"""PTQD (He et al., NeurIPS 2023, arXiv 2305.10657): the error of the predicted noise is split into three parts.

    ε̂ - ε = k_t ε + b_t + r        correction: ε ← (ε̂ - b_t) / (1 + k_t)

with the part that is correlated with ε, of least-squares slope k_t over all elements at a timestep (section 4.1); the
mean b_t of the rest, for each channel; and the uncorrelated residual r, whose variance is taken off the noise that
stochastic samplers add (section 4.2; `qdit.sampler.hook`). A negative slope is taken as 0, as in the released code:
then the mean square of r / (1 + k), the error after the correction, is at most that of the error before, on the data of
the fit; dividing by less than 1 would make r larger.

The correction is fitted to pairs of guided predictions, because it corrects those, at the states of full-precision
trajectories. These have noise of their own, not that of calibration or of evaluated samples. The released code
subtracts the mean of the whole error as b_t, k_t times the mean of ε included; here b_t is the mean of the rest, as in
the paper.

Left out: the paper's mixed precision, steps with more bits where the signal-to-noise ratio is low.
"""

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.checked import Checked, Samples
from qdit.correction.base import NoiseCorrection
from qdit.errors import UserError
from qdit.model.base import DiffusionModel
from qdit.model.checks import predicts
from qdit.quant.time_groups import Time
from qdit.quantized import Quantized
from qdit.seeding import CORRECTION
from qdit.setting import Setting

log = logging.getLogger("qdit")


class Moments:
    """Sums over pairs (ε, ε̂ - ε) of one timestep, in float64, from which slope, bias and variance follow."""

    def __init__(self, channels: int) -> None:
        self.count = 0  # elements of a channel
        self.full, self.error = torch.zeros(2, channels, dtype=torch.float64)
        self.full_full = self.full_error = self.error_error = 0.0

    def add(self, full: Float[Tensor, "B C *space"], error: Float[Tensor, "B C *space"]) -> None:
        """Take in a batch."""
        x, d = (part.double().cpu().transpose(0, 1).flatten(1) for part in (full, error))
        self.count += x.shape[1]
        self.full, self.error = self.full + x.sum(1), self.error + d.sum(1)
        self.full_full += x.square().sum().item()
        self.full_error += (x * d).sum().item()
        self.error_error += d.square().sum().item()

    def solve(self) -> tuple[float, Float[Tensor, " C"], float]:
        """Slope k (0 at least), bias b [C] and the variance of error - k ε - b."""
        n, m = self.count, self.count * len(self.full)
        spread = self.full_full - self.full.sum().item() ** 2 / m
        covariance = self.full_error - self.full.sum().item() * self.error.sum().item() / m
        slope = max(0.0, covariance / spread) if spread > 0 else 0.0
        bias = (self.error - slope * self.full) / n
        rest = self.error_error - 2 * slope * self.full_error + slope**2 * self.full_full
        return slope, bias, max(0.0, rest - n * bias.square().sum().item()) / m


@dataclass(frozen=True, kw_only=True)
class PTQD(Checked):
    """Fit PTQD's three parts at every timestep of the sampler.

    Args:
        name: what tables call it.
        num_samples: trajectories behind the fit.
        batch_size: trajectories at a time.
        seed: of their noise and labels, added to the run's.

    Raises:
        UserError: a number is too small.
    """

    name: str
    num_samples: Samples
    batch_size: Samples
    seed: int = 0

    def problems(self, model: DiffusionModel) -> list[str]:
        """See `qdit.correction.base.Correction`."""
        kind = predicts(model.scheduler_config())
        if kind == "epsilon":
            return []
        return [f"correction={self.name} corrects predicted noise (epsilon); this model predicts {kind}"]

    @torch.no_grad()
    def fit(self, model: DiffusionModel, quantized: Quantized, setting: Setting) -> NoiseCorrection:
        """See `qdit.correction.base.Correction`.

        Raises:
            UserError: the quantized model's output is not finite.
        """
        sampler, seed, channels = setting.sampler, setting.seed + self.seed, model.latent_shape[0]
        timesteps = sampler.timesteps(model)
        log.info("correction: %d trajectories of %d steps", self.num_samples, len(timesteps))
        if not sampler.absorbs:
            log.info(
                "correction: %s at eta=%g has no noise that could absorb an error; mean and slope are corrected, the "
                "variance is not",
                sampler.kind,
                sampler.eta,
            )
        moments = {t: Moments(channels) for t in timesteps}
        for indices, labels in setting.dataset.batches(CORRECTION, self.num_samples, self.batch_size, seed):

            def compare(step: int, t: Time, x: Tensor, output: Tensor, labels: Tensor = labels) -> None:
                with quantized.installed(model):
                    rounded = sampler.predict(model, x, t, labels.to(model.device))
                full = output[:, :channels]
                moments[t].add(full, rounded[:, :channels] - full)

            sampler.sample(model, indices, labels, seed, callback=compare)
        return _solved(moments)


def _solved(moments: dict[Time, Moments]) -> NoiseCorrection:
    """The correction that the moments of each timestep give.

    Raises:
        UserError: they are not finite.
    """
    found = [each.solve() for each in moments.values()]
    slope, variance = (torch.tensor([each[i] for each in found]) for i in (0, 2))
    bias = torch.stack([each[1] for each in found]).float()
    if not (slope.isfinite().all() and variance.isfinite().all() and bias.isfinite().all()):
        raise UserError(
            "the quantized model's output is not finite, and cannot be corrected; try more bits, a narrower scope, or "
            "correction=none"
        )
    return NoiseCorrection(torch.tensor(list(moments)), slope, bias, variance)
