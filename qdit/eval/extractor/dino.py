"""DINO ViT-B/16 (Caron et al., arXiv 2104.14294) through timm, as VBench's subject consistency has it.

Square inputs of 224 px are timm's own forward. For other shapes the released code resizes the position table in its own
way, which timm's differs from by a tenth: here it is the released one, and what is no multiple of 16 is cropped.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qdit.eval.extractor.common import without_loggers
from qdit.eval.extractor.resizing import for_dino
from qdit.eval.extractor.user_files import UserFile, load_strictly, read_state

PATCH, GRID = 16, 14
MODEL = "vit_base_patch16_224.dino"


class DINONetwork(nn.Module):
    """timm's network; its output is the normalised class token."""

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 _ 768"]:
        """The position table for another grid of patches; the class token's stays."""
        table = self.network.pos_embed
        if rows == columns == GRID:
            return table
        patches = table[:, 1:].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / GRID, (columns + 0.1) / GRID)  # the released code guards its rounding so
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[b, 3, H, W] uint8 to pooled [b, 768]."""
        x = for_dino(images)
        rows, columns = (side // PATCH for side in x.shape[-2:])
        x = x[..., : rows * PATCH, : columns * PATCH]
        tokens = self.network.patch_embed.proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.network.cls_token.expand(len(x), -1, -1), tokens], 1) + self.positions(rows, columns)
        return {"pooled": self.network.norm(self.network.blocks(tokens))[:, 0]}


class DINO(UserFile):
    """DINO's class token of frames at 224 px."""

    name = "dino"
    sizes = {"pooled": 768}  # noqa: RUF012 - never written to

    def build(self) -> nn.Module:
        """The network with its weights.

        Raises:
            UserError: the file is missing, or of another network.
        """
        path = self.path()
        with without_loggers():
            import timm
        network = timm.create_model(MODEL, pretrained=False, num_classes=0)
        return DINONetwork(load_strictly(network, read_state(path), path))
