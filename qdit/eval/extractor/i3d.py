"""I3D of Kinetics (Carreira & Zisserman, arXiv 1705.07750) for FVD: the TorchScript file that StyleGAN-V's FVD uses.

A clip's frames are resized to 224 px (bilinear, no antialiasing) and go in as [-1, 1], 16 or more. The script would
resize and rescale by itself, and give probabilities, unless it is told not to, as FVD tells it: the features are the
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
_AS_FVD: dict[str, bool] = {"rescale": False, "resize": False, "return_features": True}
"""What the script is told: pixels are rescaled and resized already, and logits are wanted, not probabilities."""


class I3DNetwork(nn.Module):
    """The script; it reads [b, 3, T, 224, 224], with the keywords of `_AS_FVD`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """[b, T, 3, H, W] uint8 to pooled [b, 1, 400]: one feature of a whole clip."""
        frames = resized(clips.flatten(0, 1).float(), (224, 224), "bilinear", antialias=False)
        seen = (2 * frames / 255 - 1).unflatten(0, clips.shape[:2]).transpose(1, 2)
        return {"pooled": self.network(seen, **_AS_FVD).flatten(1)[:, None]}


class I3D(UserFile):
    """Logits of whole clips."""

    name = "i3d"
    sizes = {"pooled": 400}  # noqa: RUF012 - never written to
    window = None

    def build(self) -> nn.Module:
        """The network; a TorchScript archive holds code of tensors, and is not unpickled.

        Raises:
            UserError: the file is missing, no TorchScript, or the script of another network.
        """
        path: Path = self.path()
        try:
            script = torch.jit.load(str(path), map_location="cpu")
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path} is no TorchScript file ({str(error).splitlines()[0]})") from error
        takes = {argument.name for argument in script.forward.schema.arguments}
        if lacking := [name for name in _AS_FVD if name not in takes]:
            raise UserError(
                f"{path} is another TorchScript: it does not take {', '.join(lacking)}, as the one of StyleGAN-V's FVD "
                "does; get that one"
            )
        return I3DNetwork(script)

    def check(self, images: Tensor) -> None:
        """Refuse clips that are too short.

        Raises:
            UserError: fewer than ten frames.
        """
        if images.shape[1] < LEAST:
            raise UserError(f"I3D needs clips of {LEAST} frames or more, these have {images.shape[1]}")
