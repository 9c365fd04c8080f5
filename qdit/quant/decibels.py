"""Signal-to-noise ratio in decibels (SQNR), the same wherever qdit compares something quantized with its original."""

import torch
from jaxtyping import Float
from torch import Tensor

CAP_DB = 120.0


def decibels(signal: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """10 log10(signal / noise) of energies, clipped to ±120 dB and never NaN, so that it can be averaged and saved.

    No noise is 120 dB, whatever the signal. A signal or noise that is not finite is -120 dB: the model diverged.
    """
    ratio = 10 * (signal.log10() - noise.log10())  # a difference of logarithms neither over- nor underflows
    ratio = torch.where(noise == 0, CAP_DB, ratio.clamp(-CAP_DB, CAP_DB))
    return torch.where(signal.isfinite() & noise.isfinite(), ratio, -CAP_DB)
