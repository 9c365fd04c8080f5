"""CLIPs that were trained on what people prefer: HPSv2.1 (Wu et al., arXiv 2306.09341), PickScore (arXiv 2305.01569).

HPSv2.1 is open_clip's ViT-H/14 with the weights of `HPS_v2.1_compressed.pt`; the package `hpsv2`, which pins pytest and
protobuf, is not needed. Its released code resizes tensors, not pictures, so that bicubic overshoot stays; it runs in
half precision, and here in float32. PickScore is a folder as transformers saves it, with a learned factor.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from qdit import compat as compat  # before open_clip, which imports torchvision
from qdit.eval.extractor.clip import CLIP, CLIPNetwork
from qdit.eval.extractor.resizing import for_clip, for_hps
from qdit.eval.extractor.user_files import load_strictly, read_state

ARCHITECTURE = "ViT-H-14"
"""Of open_clip's configurations."""


class HPSNetwork(nn.Module):
    """open_clip's model; its output is the feature of an image, not normalised."""

    model: Any

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[b, 3, H, W] uint8 to pooled [b, D]."""
        return {"pooled": self.model.encode_image(for_hps(images))}

    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "n D"]:
        """Features of prompts; the tokenizer cuts them after 77 tokens."""
        device = self.model.logit_scale.device
        return self.model.encode_text(self.tokenizer(list(prompts)).to(device))


class HPS(CLIP):
    """HPSv2.1."""

    name, sizes, library, distribution = "hps_v21", {"pooled": 1024}, "open_clip", "open_clip_torch"

    def build(self) -> nn.Module:
        """The network with its weights.

        Raises:
            UserError: the file or the package is missing, or the file is of another network.
        """
        path = self.path()
        import open_clip  # pyright: ignore[reportMissingImports]
        from open_clip.model import CLIP as Model  # pyright: ignore[reportMissingImports]

        state = read_state(path)
        about: dict[str, Any] = open_clip.get_model_config(ARCHITECTURE) or {}
        return HPSNetwork(load_strictly(Model(**about), state, path), open_clip.get_tokenizer(ARCHITECTURE))


class PickNetwork(CLIPNetwork):
    """A CLIP whose learned factor is part of its score."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[b, 3, H, W] uint8 to pooled [b, D], and the factor [b, 1]."""
        found = super().forward(images)
        return found | {"factor": self.model.logit_scale.exp().expand(len(images), 1)}


class Pick(CLIP):
    """PickScore."""

    name, sizes, see, kind = "pick_score", {"pooled": 1024, "factor": 1}, staticmethod(for_clip), PickNetwork
