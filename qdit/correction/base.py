"""Output correction: the interface of corrections, and their result, an affine map of the prediction at each timestep.

A correction is fitted last, to the quantized model as it will be sampled from; a search, which comes before, compares
uncorrected models. A correction acts on the guided output, through the sampler's hook (`qdit.sampler.hook`).
"""

from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.model.base import DiffusionModel
from qdit.quant.time_groups import Time
from qdit.quantized import Quantized
from qdit.setting import Setting
from qdit.storage.shelf import Shelf

FITTED = "correction"


class NoiseCorrection(nn.Module):
    """Undo a slope and a bias in the predicted noise, timestep by timestep: ε ← (ε - bias) / (1 + slope).

    Its buffers are its whole state: `NoiseCorrection(**tensors)` is the same correction again. Implements
    `qdit.sampler.hook.Hook`.

    Args:
        timesteps: those that were fitted, as they are given to the model.
        slope: of the regression of the error on the noise.
        bias: mean of the rest of the error, for each channel of the predicted noise.
        variance: of the residual that is then left, before the division by 1 + slope.
    """

    timesteps: Tensor
    slope: Tensor
    bias: Tensor
    variance: Tensor

    def __init__(
        self,
        timesteps: Real[Tensor, " steps"],
        slope: Float[Tensor, " steps"],
        bias: Float[Tensor, "steps channels"],
        variance: Float[Tensor, " steps"],
    ) -> None:
        super().__init__()
        for name, value in {"timesteps": timesteps, "slope": slope, "bias": bias, "variance": variance}.items():
            self.register_buffer(name, value)

    def _row(self, timestep: Time) -> int:
        """The row of a timestep.

        Raises:
            UserError: it was not fitted.
        """
        found = (self.timesteps == timestep).nonzero()
        if len(found) == 0:
            known = ", ".join(map(str, self.timesteps.tolist()))
            raise UserError(
                f"the correction was not fitted at timestep {timestep}, but at {known}; sample with the sampler of the "
                "fit, or fit again"
            )
        return int(found[0])

    def output(self, output: Float[Tensor, "B O *space"], timestep: Time) -> Float[Tensor, "B O *space"]:
        """The guided output with its first channels, the noise, corrected; a learned variance stays.

        Raises:
            UserError: the timestep was not fitted.
        """
        row, channels = self._row(timestep), self.bias.shape[1]
        bias = self.bias[row].to(output).view(-1, *(1,) * (output.ndim - 2))
        noise = (output[:, :channels] - bias) / (1 + self.slope[row].to(output))
        return torch.cat([noise, output[:, channels:]], 1)

    def error(self, timestep: Time) -> float:
        """The variance of the residual error in the corrected noise."""
        row = self._row(timestep)
        return (self.variance[row] / (1 + self.slope[row]) ** 2).item()


class Correction(Protocol):
    """A method that fits a correction. Config only: the models and the data arrive as arguments."""

    def problems(self, model: DiffusionModel) -> list[str]:
        """What cannot work with this model, one sentence each."""
        ...

    def fit(self, model: DiffusionModel, quantized: Quantized, setting: Setting) -> NoiseCorrection:
        """The correction of a quantized model.

        Args:
            model: in full precision; it is read, not changed.
            quantized: what is corrected.
            setting: the run: its sampler, data set and seed.

        Raises:
            UserError: the quantized model's output is not finite.
        """
        ...


def corrected(
    correction: Correction | None, model: DiffusionModel, quantized: Quantized, setting: Setting | None
) -> Quantized:
    """Fit a correction, or read what an earlier process of the same run fitted; arguments as `Correction.fit`.

    `correction` None changes nothing and needs no setting.

    Raises:
        UserError: the quantized model's output is not finite, or a file of the run is damaged.
        ValueError: there is a correction, and no setting.
    """
    if correction is None:
        return quantized
    if setting is None:
        raise ValueError("a correction needs its setting")
    shelf = Shelf.of(setting.folder) if setting.folder else None
    if shelf and (found := shelf.load(FITTED)) is not None:
        fitted = NoiseCorrection(**found)
    else:
        fitted = correction.fit(model, quantized, setting)
        if shelf:
            shelf.save(FITTED, dict(fitted.state_dict()))
    return replace(quantized, correction=fitted.to(model.device))
