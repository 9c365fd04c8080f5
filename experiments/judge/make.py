"""Quantize the embedded DiT by torchao, by SDNQ and by qdit, each saved as a folder that diffusers loads.

    python experiments/judge/make.py FOLDER [full torchao_w8a8 torchao_w8a16 sdnq_w8a16 qdit_rtn_w8a8 ...]

`pip install 'qdit[export]' sdnq`, or name the folders that are to be made.
"""

import sys
from pathlib import Path
from typing import Any

import torch

import qdit


def full(_: Path) -> Any:
    """The original."""
    return qdit.embedded()


def by_diffusers(folder: Path, config: Any) -> Any:
    """The original, quantized by diffusers while it loads it."""
    from diffusers import DiTPipeline, DiTTransformer2DModel

    source = folder / "full"
    about: dict[str, Any] = {"quantization_config": config, "torch_dtype": torch.float32}
    network = DiTTransformer2DModel.from_pretrained(source / "transformer", **about)
    return DiTPipeline.from_pretrained(source, transformer=network, torch_dtype=torch.float32)


def torchao_w8a16(folder: Path) -> Any:
    """Weights in int8, a scale a row: every linear layer."""
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    return by_diffusers(folder, TorchAoConfig(Int8WeightOnlyConfig(version=2)))


def torchao_w8a8(folder: Path) -> Any:
    """Weights and dynamic inputs in int8: every linear layer."""
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return by_diffusers(folder, TorchAoConfig(Int8DynamicActivationInt8WeightConfig(version=2)))


def sdnq_w8a16(folder: Path) -> Any:
    """SDNQ's default for int8: weights alone."""
    from diffusers import SDNQConfig

    return by_diffusers(folder, SDNQConfig(weights_dtype="int8"))


def qdit_rtn_w8a8(_: Path) -> Any:
    """Rounding to nearest, blocks alone, in qdit."""
    pipe = qdit.embedded()
    qdit.quantize(pipe.transformer, "rtn", "weight.grid=symmetric", bits="w8a8")
    return pipe


def qdit_all_w8a8(_: Path) -> Any:
    """The same in every linear layer, as the others do it."""
    pipe = qdit.embedded()
    qdit.quantize(pipe.transformer, "rtn", "weight.grid=symmetric", "scope=all", bits="w8a8")
    return pipe


MAKE = {each.__name__: each for each in (full, torchao_w8a16, torchao_w8a8, sdnq_w8a16, qdit_rtn_w8a8, qdit_all_w8a8)}

if __name__ == "__main__":
    where = Path(sys.argv[1])
    for name in sys.argv[2:] or MAKE:
        MAKE[name](where).save_pretrained(where / name)
