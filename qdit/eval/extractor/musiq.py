"""MUSIQ (Ke et al., arXiv 2108.05997), trained on SPAQ, as VBench's imaging quality: through pyiqa, if the user has it.

pyiqa's licence, PolyForm-Noncommercial, forbids commercial use: so it is no dependency. Frames whose longer side
exceeds 512 px are shrunk to it, bilinear without antialiasing.
"""

from importlib import import_module

import torch
from torch import Tensor, nn

from qdit.eval.extractor.resizing import resized
from qdit.eval.extractor.user_files import UserFile

LONGEST = 512


def shrunk(height: int, width: int) -> tuple[int, int]:
    """The size of a frame whose longer side is at most 512.

    >>> shrunk(480, 720), shrunk(256, 256)
    ((341, 512), (256, 256))
    """
    scale = LONGEST / max(height, width)
    return (int(scale * height), int(scale * width)) if scale < 1 else (height, width)


class Quality(nn.Module):
    """pyiqa's metric of images in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[b, 3, H, W] uint8 to score [b, 1], of 0 … 100."""
        size = shrunk(images.shape[-2], images.shape[-1])
        x = images.float() / 255
        return {"score": self.network(x if size == x.shape[-2:] else resized(x, size, "bilinear", False)).view(-1, 1)}


class MUSIQ(UserFile):
    """Scores of images by MUSIQ-SPAQ."""

    name = "musiq"
    sizes = {"score": 1}  # noqa: RUF012 - never written to
    library = "pyiqa"

    def build(self) -> nn.Module:
        """The network with its weights.

        Raises:
            UserError: the file, or pyiqa, is missing.
        """
        path = self.path()
        pyiqa = import_module("pyiqa")  # the user's, if at all

        return Quality(pyiqa.create_metric("musiq-spaq", device=torch.device("cpu"), pretrained_model_path=str(path)))
