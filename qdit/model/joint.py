"""What families with joint attention of image and text have in common (Esser et al., arXiv 2403.03206).

The text is a stream of its own beside the image's, with its own projections, until (in FLUX) single blocks join them.
In SD3 and FLUX every token of the text takes part, pads too, as the encoders made them: they have no mask. Prompts are
encoded by the stock pipeline's own `encode_prompt`. Times are floats, of a flow from data (0) to noise (1000).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdit.model.base import Fold, Site, Source, readers_of_inputs
from qdit.model.checks import FLOW_SCHEDULERS, Keys, unquantized
from qdit.model.loaded_text import LoadedText
from qdit.model.text import TextModel

CLIP_LENGTH = 77
"""Tokens of a prompt that a CLIP reads."""


class LoadedJoint(LoadedText):
    """A network with joint attention; see `qdit.model.base.DiffusionModel`."""

    schedulers = FLOW_SCHEDULERS

    def list_folds(self, sites: list[Site]) -> list[Fold]:
        """The values' folds, and those of modulations into what reads the modulated norms."""
        return super().list_folds(sites) + modulation_folds(sites)


def modulation_folds(sites: Sequence[Site]) -> list[Fold]:
    """The folds of the inputs that a layer of their own block modulates: of attentions, feed-forwards, the last layer.

    adaLN-Zero's output is shift, scale and gate of the attention, then of the feed-forward, then (SD3.5) of a second
    attention, each as wide as the model; AdaLayerNormContinuous's is scale, then shift. Left out: inputs that are not
    a norm's (of `to_out`, behind a GELU).
    """
    widths = {site.name: site.out_features for site in sites}
    found = []
    for readers in readers_of_inputs(sites):
        first, names = readers[0], tuple(site.name for site in readers)
        layer, part = _modulation(first, widths)
        if layer in widths:
            shift, scale = 3 * part, 3 * part + 1
            if widths[layer] == 2 * first.in_features:  # AdaLayerNormContinuous
                shift, scale = 1, 0
            width = first.in_features
            found.append(Fold((Source(layer, (shift * width,), (scale * width,)),), names))
    return found


def _modulation(site: Site, widths: dict[str, int]) -> tuple[str, int]:
    """The layer that modulates a site's input, and whether it is for the first, second or third time in the block."""
    if site.role == "final":
        return "norm_out.linear", 0
    if f"{site.path}.img_mod.1" in widths:  # Qwen-Image
        stream = "txt_mod" if site.role.startswith("text_") else "img_mod"
        parts = {"qkv": 0, "text_qkv": 0, "ffn_up": 1, "text_up": 1}
        return (f"{site.path}.{stream}.1", parts[site.role]) if site.role in parts else ("", 0)
    stream = f"{site.path}.norm1" if f"{site.path}.norm1.linear" in widths else f"{site.path}.norm"
    match site.role:
        case "qkv" | "ffn_up" if stream.endswith("norm"):
            return f"{stream}.linear", 0  # a single block: attention and feed-forward read one tensor
        case "qkv":
            return f"{stream}.linear", 2 if ".attn2." in site.name else 0
        case "text_qkv":
            return f"{stream}_context.linear", 0
        case "ffn_up":
            return f"{stream}.linear", 1
        case "text_up":
            return f"{stream}_context.linear", 1
    return "", 0


@dataclass(kw_only=True)
class JointModel(TextModel):
    """A pipeline with joint attention."""

    reading = "as given"

    def check_config(self, file: Path, config: dict[str, Any]) -> None:
        """See `TextModel`."""
        keys = Keys(file, config)
        unquantized(keys)
        keys.whole("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "patch_size", *self.counts)
        self.check_more(keys)
        keys.finish()

    def check_more(self, keys: Keys) -> None:
        """Note what else of a transformer's config cannot be."""


def shifted(scheduler: Any, tokens: int, most: float) -> dict[str, float]:
    """The shift of the times by the image's size, where a scheduler's config asks for it (dynamic shifting).

    Args:
        scheduler: of diffusers.
        tokens: of the image.
        most: the pipeline's default of the greatest shift.
    """
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return {}
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    lengths = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    return {"mu": calculate_shift(tokens, *lengths, config.get("base_shift", 0.5), config.get("max_shift", most))}
