"""CLIP (Radford et al., arXiv 2103.00020) through transformers: features of images and prompts, in three flavours.

`clip_b32` and `clip_l14` see images as OpenAI's code does; `…_vbench` as VBench does, and `clip_b32_evalcrafter` as
EvalCrafter does, with its defect (`qdit.eval.extractor.resizing`). A prompt is cut after 77 tokens.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qdit import compat as compat  # before transformers, which imports torchvision
from qdit.errors import UserError
from qdit.eval.extractor.resizing import for_clip, for_clip_in_evalcrafter, for_clip_in_vbench
from qdit.eval.extractor.user_files import UserFile

log = logging.getLogger("qdit")
TOKENS = 77


class CLIPNetwork(nn.Module):
    """transformers' model; its output is the projected feature of an image, not normalised."""

    model: Any

    def __init__(self, model: nn.Module, tokenizer: Any, see: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.tokenizer, self.see = model, tokenizer, see

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[b, 3, H, W] uint8 to pooled [b, D]."""
        seen = self.model.vision_model(pixel_values=self.see(images))
        return {"pooled": self.model.visual_projection(seen.pooler_output)}

    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "n D"]:
        """Projected features of prompts; how many were cut is logged."""
        lengths = [len(ids) for ids in self.tokenizer(list(prompts))["input_ids"]]
        if cut := sum(length > TOKENS for length in lengths):
            log.warning("%d of %d prompts are longer than CLIP's %d tokens, and are cut", cut, len(lengths), TOKENS)
        about = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        device = self.model.visual_projection.weight.device
        read = self.model.text_model(about["input_ids"].to(device), about["attention_mask"].to(device))
        return self.model.text_projection(read.pooler_output)


class CLIP(UserFile):
    """A CLIP in one flavour; subclasses name it."""

    library = "transformers"
    see: Callable[[Tensor], Tensor]
    kind: type[CLIPNetwork] = CLIPNetwork

    def build(self) -> nn.Module:
        """The network with its weights, of a folder as transformers saves it.

        Raises:
            UserError: the folder is missing, damaged, or of another model.
        """
        from transformers import CLIPModel, CLIPTokenizer

        path = self.path()
        try:
            model = CLIPModel.from_pretrained(path, local_files_only=True, use_safetensors=True, dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"{path} is no CLIP as transformers saves it ({str(error).splitlines()[0]})") from error
        return self.kind(model, tokenizer, type(self).see)

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "n D"]:
        """Features of prompts, 64 at a time."""
        if self.network is None:
            self.load(self.device)
        network: Any = self.network
        network.eval()
        return torch.cat([network.texts(prompts[at : at + 64]).float().cpu() for at in range(0, len(prompts), 64)])


class CLIPB32(CLIP):
    """ViT-B/32."""

    name, sizes, see = "clip_b32", {"pooled": 512}, staticmethod(for_clip)


class CLIPL14(CLIP):
    """ViT-L/14."""

    name, sizes, see = "clip_l14", {"pooled": 768}, staticmethod(for_clip)


class CLIPL14At336(CLIP):
    """ViT-L/14 at 336 px, which CMMD uses."""

    name, sizes, see = "clip_l14_336", {"pooled": 768}, staticmethod(partial(for_clip, side=336))


class CLIPB32InVBench(CLIP):
    """ViT-B/32, images as VBench resizes them."""

    name, sizes, see = "clip_b32_vbench", {"pooled": 512}, staticmethod(for_clip_in_vbench)


class CLIPL14InVBench(CLIP):
    """ViT-L/14, images as VBench resizes them."""

    name, sizes, see = "clip_l14_vbench", {"pooled": 768}, staticmethod(for_clip_in_vbench)


class CLIPB32InEvalCrafter(CLIP):
    """ViT-B/32, images as EvalCrafter feeds them."""

    name, sizes, see = "clip_b32_evalcrafter", {"pooled": 512}, staticmethod(for_clip_in_evalcrafter)
