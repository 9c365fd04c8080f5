"""Quantize an embedded model by torchao, by SDNQ and by qdit, each saved as a folder that diffusers loads.

    python experiments/judge/make.py FOLDER [--model emoji_pixart] [full torchao_w8a8 torchao_w8a16 sdnq_w8a16 ...]

`pip install 'qdit[export]' sdnq`, or name the folders that are to be made.
"""

import argparse
from pathlib import Path
from typing import Any

import diffusers
import torch

import qdit


def full(model: str, _: Path) -> Any:
    """The original."""
    return qdit.embedded(model)


def by_diffusers(model: str, folder: Path, config: Any) -> Any:
    """The original, quantized by diffusers while it loads it."""
    pipe, source = qdit.embedded(model), folder / "full"
    kind = getattr(diffusers, type(pipe.transformer).__name__)
    about: dict[str, Any] = {"quantization_config": config, "torch_dtype": torch.float32}
    network = kind.from_pretrained(source / "transformer", **about)
    return type(pipe).from_pretrained(source, transformer=network, torch_dtype=torch.float32)


def torchao_w8a16(model: str, folder: Path) -> Any:
    """Weights in int8, a scale a row: every linear layer."""
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    return by_diffusers(model, folder, TorchAoConfig(Int8WeightOnlyConfig(version=2)))


def torchao_w8a8(model: str, folder: Path) -> Any:
    """Weights and dynamic inputs in int8: every linear layer."""
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return by_diffusers(model, folder, TorchAoConfig(Int8DynamicActivationInt8WeightConfig(version=2)))


def sdnq_w8a16(model: str, folder: Path) -> Any:
    """SDNQ's default for int8: weights alone."""
    from diffusers import SDNQConfig

    return by_diffusers(model, folder, SDNQConfig(weights_dtype="int8"))


def qdit_rtn_w8a8(model: str, _: Path) -> Any:
    """Rounding to nearest, blocks alone, in qdit."""
    pipe = qdit.embedded(model)
    qdit.quantize(pipe.transformer, "rtn", "weight.grid=symmetric", bits="w8a8")
    return pipe


def qdit_all_w8a8(model: str, _: Path) -> Any:
    """The same in every linear layer, as the others do it."""
    pipe = qdit.embedded(model)
    qdit.quantize(pipe.transformer, "rtn", "weight.grid=symmetric", "scope=all", bits="w8a8")
    return pipe


MAKE = {each.__name__: each for each in (full, torchao_w8a16, torchao_w8a8, sdnq_w8a16, qdit_rtn_w8a8, qdit_all_w8a8)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(MAKE))
    parser.add_argument("--model", default="emoji_dit")
    given = parser.parse_args()
    for name in given.names:
        MAKE[name](given.model, given.folder).save_pretrained(given.folder / name)
