"""Fidelity to full precision, sample by sample, on the same noise and labels: the main instrument at small n.

Each metric has a value per sample, whose mean and standard error are taken; the mean of decibels is not the decibel of
the pooled error. They do not apply to full precision itself.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from qdit.errors import Advised, UserError
from qdit.eval.base import Samples, Shown
from qdit.eval.frames import PairedFrames
from qdit.eval.per_sample import PairedMetric
from qdit.eval.reference import Reference
from qdit.quant.decibels import decibels

WINDOW, SIGMA = 11, 1.5


def sqnr(reference: Float[Tensor, "n *shape"], test: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """10 log10(Σ r² / Σ (r - q)²) of each sample in dB, see `decibels`."""
    r, q = reference.double().flatten(1), test.double().flatten(1)
    return decibels(r.square().sum(1), (r - q).square().sum(1))


def psnr(reference: UInt8[Tensor, "n 3 h w"], test: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """-10 log10 of the mean squared error of each image on a scale of 0..1, see `decibels`."""
    error = (reference.double() - test.double()).div(255).square().flatten(1).mean(1)
    return decibels(torch.ones_like(error), error)


def ssim(reference: UInt8[Tensor, "n 3 h w"], test: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Structural similarity of each image: Gaussian 11 / 1.5, inside the border, mean over channels.

    Wang, Bovik, Sheikh & Simoncelli 2004, doi 10.1109/TIP.2003.819861.

    Raises:
        UserError: the images are smaller than the window.
    """
    if problems := _too_small(min(reference.shape[-2:])):
        raise UserError(*problems)
    x, y = reference.double() / 255, test.double() / 255
    moments = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = moments
    var_x, var_y, cov = xx - mean_x.square(), yy - mean_y.square(), xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2  # (K1 L)², (K2 L)² with L = 1
    score = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return score.flatten(1).mean(1)


def _too_small(image_size: int) -> list[str]:
    """A sentence if SSIM's window does not fit into an image."""
    if image_size >= WINDOW:
        return []
    problem = f"SSIM needs images of at least {WINDOW} px, these have {image_size}"
    return [Advised(problem, run="leave it out (~eval.ssim)", folder="leave it out of --metrics")]


def _blur(x: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h_in w_in"]:
    """Separable Gaussian, only where the window lies inside."""
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    window = torch.softmax(-offset.square() / (2 * SIGMA**2), 0)
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return flat.view(*x.shape[:-2], *flat.shape[-2:])


def _latents(samples: Samples, full_precision: Samples) -> tuple[Tensor, Tensor]:
    """Latents of full precision and of the samples, both finite and of one shape."""
    r, q = full_precision.latents(), samples.latents()
    if r.shape != q.shape:
        raise UserError(f"latents of shape {tuple(q.shape)} cannot be paired with {tuple(r.shape)} of full precision")
    for what, x in (("full-precision", r), ("quantized", q)):
        if not x.isfinite().all():
            bad = int((~x.flatten(1).isfinite().all(1)).nonzero()[0])
            raise UserError(
                f"the {what} latent of sample {bad} is not finite: the model diverged; try dtype=float32, more bits or "
                "a narrower scope"
            )
    return r, q


@dataclass(frozen=True, kw_only=True)
class SQNR(PairedMetric):
    """Signal to quantization noise of the final latent, dB."""

    higher_is_better = True

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """`sqnr` of the latents."""
        return sqnr(*_latents(samples, full_precision))


@dataclass(frozen=True, kw_only=True)
class LatentMSE(PairedMetric):
    """Mean squared error of the final latent."""

    higher_is_better = False

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """Mean over each latent."""
        r, q = _latents(samples, full_precision)
        return (r.double() - q.double()).square().flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class PSNR(PairedFrames):
    """Peak signal to noise of the decoded uint8 image, dB; of a clip, the mean over its frames."""

    higher_is_better = True

    def score(self, frames: UInt8[Tensor, "b k 3 H W"], *reference: Tensor) -> Float[Tensor, "b k"]:
        """`psnr` of each frame."""
        return psnr(reference[0].flatten(0, 1), frames.flatten(0, 1)).view(frames.shape[:2])


@dataclass(frozen=True, kw_only=True)
class SSIM(PairedFrames):
    """Structural similarity of the decoded uint8 image; of a clip, the mean over its frames."""

    higher_is_better = True

    def preflight(
        self, n: int | None = None, reference: Reference | None = None, image_size: int | None = None
    ) -> list[str]:
        """Images smaller than the window."""
        return _too_small(image_size) if image_size is not None else []

    def score(self, frames: UInt8[Tensor, "b k 3 H W"], *reference: Tensor) -> Float[Tensor, "b k"]:
        """`ssim` of each frame.

        Raises:
            UserError: the frames are smaller than the window.
        """
        return ssim(reference[0].flatten(0, 1), frames.flatten(0, 1)).view(frames.shape[:2])


@dataclass(frozen=True, kw_only=True)
class WorstPSNR(PSNR):
    """PSNR of each clip's worst frame, dB: errors grow with time, and a mean hides where a clip breaks."""

    modalities = ("video",)
    shown = Shown("PSNR, worst frame", " (dB)", 1)

    def reduced(self, values: Float[Tensor, "n T"]) -> Float[Tensor, " n"]:
        """The least of each clip."""
        return values.amin(1)


@dataclass(frozen=True, kw_only=True)
class WorstSSIM(SSIM):
    """SSIM of each clip's worst frame."""

    modalities = ("video",)
    shown = Shown("SSIM, worst frame")

    def reduced(self, values: Float[Tensor, "n T"]) -> Float[Tensor, " n"]:
        """The least of each clip."""
        return values.amin(1)


@dataclass(frozen=True, kw_only=True)
class WorstSQNR(PairedMetric):
    """Signal to quantization noise of each clip's worst frame of latents, dB, with the curve over all frames."""

    modalities = ("video",)
    higher_is_better = True
    shown = Shown("SQNR, worst frame", " (dB)", 1)

    def _frames(self, samples: Samples, full_precision: Samples) -> Float[Tensor, "n T"]:
        r, q = (x.transpose(1, 2) for x in _latents(samples, full_precision))  # [n, T, C, h, w]
        return sqnr(r.flatten(0, 1), q.flatten(0, 1)).view(r.shape[:2])

    def each(self, samples: Samples, full_precision: Samples) -> Float[Tensor, " n"]:
        """The least of each clip."""
        return self._frames(samples, full_precision).amin(1)

    def by_frame(self, samples: Samples, full_precision: Samples) -> list[float]:
        """The mean over clips of each frame's."""
        return self._frames(samples, full_precision).mean(0).tolist()
