"""I3D of Kinetics (Carreira & Zisserman, arXiv 1705.07750) for FVD: the TorchScript file that StyleGAN-V's FVD uses.

A clip's frames are resized to 224 px (bilinear, no antialiasing) and go in as [-1, 1], 16 or more; the features are the
400 logits. Values of FVD depend on file, resize and length: compare none that differ in these.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.eval.extractor.resizing import resized
from qdit.eval.extractor.user_files import UserFile

LEAST = 10
"""Frames that the network's strides leave something of."""


class I3DNetwork(nn.Module):
    """The script; it reads [b, 3, T, 224, 224]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """[b, T, 3, H, W] uint8 to pooled [b, 1, 400]: one feature of a whole clip."""
        frames = resized(clips.flatten(0, 1).float(), (224, 224), "bilinear", antialias=False)
        seen = (2 * frames / 255 - 1).unflatten(0, clips.shape[:2]).transpose(1, 2)
        return {"pooled": self.network(seen).flatten(1)[:, None]}


class I3D(UserFile):
    """Logits of whole clips."""

    name = "i3d"
    sizes = {"pooled": 400}  # noqa: RUF012 - never written to
    window = None

    def build(self) -> nn.Module:
        """The network; a TorchScript archive holds code of tensors, and is not unpickled.

        Raises:
            UserError: the file is missing, or no TorchScript.
        """
        path: Path = self.path()
        try:
            return I3DNetwork(torch.jit.load(str(path), map_location="cpu"))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path} is no TorchScript file ({str(error).splitlines()[0]})") from error

    def check(self, images: Tensor) -> None:
        """Refuse clips that are too short.

        Raises:
            UserError: fewer than ten frames.
        """
        if images.shape[1] < LEAST:
            raise UserError(f"I3D needs clips of {LEAST} frames or more, these have {images.shape[1]}")
