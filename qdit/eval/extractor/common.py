"""What every extractor guarantees: checked input, evaluation mode, plain float32, float32 features on the CPU.

TF32, autocast and a network left in train() each change features without any other sign, so they are switched off
here, around every pass, and not left to the caller.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.storage.digest import sha256

SPATIAL_CHANNELS = 7


def check_images(images: Tensor) -> None:
    """Refuse anything but uint8 RGB of shape [b, 3, H, W].

    Raises:
        UserError: floats of any range, channels last, grayscale, or a single image without its batch axis.
    """
    if images.dtype != torch.uint8:
        raise UserError(
            f"extractor input is {images.dtype}; it must be uint8 (from [-1, 1]: clamp(127.5 x + 128, 0, 255))"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(
            f"extractor input has shape {tuple(images.shape)}; it must be [batch, 3, height, width]: "
            "permute channels-last images, expand grayscale to three channels"
        )


def channels_last(activation: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch spatial"]:
    """ADM's spatial features: the first 7 channels, index (h * width + w) * 7 + c."""
    return activation[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


@contextmanager
def without_loggers() -> Iterator[None]:
    """Let timm be imported without wandb, which it would take along."""
    hide = "wandb" not in sys.modules
    if hide:
        sys.modules["wandb"] = None  # pyright: ignore[reportArgumentType] - Python's own mark of what cannot be imported
    try:
        yield
    finally:
        if hide:
            del sys.modules["wandb"]


def other_file(path: Path, prefix: str) -> list[str]:
    """One sentence if the digest of a weight file does not begin as the right file's does."""
    found = sha256(path)
    return [] if found.startswith(prefix) else [f"{path} has sha256 {found[:8]}, not {prefix}; copy the file again"]


class FeatureExtractor(ABC):
    """A network with `pooled`, `spatial` and `logits` outputs; subclasses find the weights and build the network.

    Args:
        weights: path of the weight file; None searches the usual places.
        allow_download: whether `load` may fetch a missing file.
    """

    name: str
    sizes: dict[str, int]
    """Width of each output."""
    window: ClassVar[int | None] = 1
    """Neighbouring frames that it reads together: one image; some of a clip; None, the whole clip."""

    def __init__(self, weights: str | None = None, allow_download: bool = False) -> None:
        self.weights = weights
        self.allow_download = allow_download
        self.network: nn.Module | None = None
        self.device = torch.device("cpu")

    @abstractmethod
    def preflight(self) -> list[str]:
        """Sentences on what is missing or damaged; loads nothing."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with its weights, on the CPU; its forward takes uint8 images and returns the features."""

    @property
    @abstractmethod
    def weights_sha256(self) -> str:
        """Digest of the weight file, for protocols and provenance."""

    @property
    def identity(self) -> str | None:
        """A digest of files that the user brings, of which there may be others; None where the name says it all."""
        return None

    def check(self, images: Tensor) -> None:
        """Refuse images that the network cannot read."""
        return

    def load(self, device: str | torch.device = "cpu") -> None:
        """Build the network once and put it on `device`.

        Raises:
            UserError: the weights are missing, damaged or of another network.
        """
        if self.network is None:
            self.network = self.build().requires_grad_(False)
        self.device = torch.device(device)
        self.network.to(self.device)

    def loaded(self, device: str | torch.device = "cpu") -> Self:
        """Itself, after `load`."""
        self.load(device)
        return self

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Float[Tensor, "batch _"]]:
        """Features of uint8 images [b, 3, H, W], or frames [b, k, 3, H, W]; a sample does not depend on its neighbours.

        Raises:
            UserError: the input is not uint8 RGB, channels first, or too small for the network.
        """
        check_images(images if self.window == 1 else images.flatten(0, 1))
        self.check(images)
        if self.network is None:
            self.load(self.device)
            assert self.network is not None
        self.network.eval()
        with ExitStack() as exact:
            exact.enter_context(torch.autocast(self.device.type, enabled=False))
            exact.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
            # By the new names: torch refuses the old ones in a process that has used these (`qdit.execution.tune_cpu`).
            products = torch.backends.cuda.matmul
            exact.callback(setattr, products, "fp32_precision", products.fp32_precision)
            products.fp32_precision = "ieee"
            found = self.network(images.to(self.device))
        return {key: value.float().cpu() for key, value in found.items()}
