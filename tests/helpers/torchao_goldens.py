"""What torchao makes of blocks in MX formats, NVFP4 and float8; writes tests/quant/torchao.safetensors.

python tests/helpers/torchao_goldens.py        (torchao 0.18.0 made those that are shipped)
"""

from pathlib import Path

import torch
from torch import Tensor

FILE = Path(__file__).parents[1] / "quant" / "torchao.safetensors"


def blocks() -> dict[str, Tensor]:
    """Inputs [4, 64] by kind."""
    normal = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    spread = normal * torch.logspace(-3, 3, 64)
    halfway = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, -2.5, -5.0, 7.0, 0.0, 1.0, 3.0])
    partly = normal.clone()
    partly[0, :16], partly[1, 3], partly[2, 40], partly[3, 17] = 0, torch.inf, -torch.inf, torch.nan
    return {
        "normal": normal,
        "spread": spread[:, torch.randperm(64, generator=torch.Generator().manual_seed(1))],
        "negative": -normal.abs(),
        "halfway": halfway.repeat(4, 4),
        "tiny": normal * 1e-20,
        "huge": normal * 1e30,
        "partly_zero": normal * (torch.arange(64) >= 32),
        "zero": torch.zeros(4, 64),
        "not_finite": partly,
    }


def main() -> None:
    from safetensors.torch import save_file
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
    from torchao.quantization.quant_primitives import (
        _choose_scale_float8,
        _dequantize_affine_float8,
        _quantize_affine_float8,
    )

    made = {}
    for kind, x in blocks().items():
        for name, dtype in {"mxfp4": torch.float4_e2m1fn_x2, "mxfp8": torch.float8_e4m3fn}.items():
            made[f"{name}.{kind}"] = MXTensor.to_mx(x, dtype, 32).dequantize(torch.float32)
        whole = per_tensor_amax_to_scale(x.abs().amax())
        made[f"nvfp4.{kind}"] = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=whole).dequantize(torch.float32)
        for name, dtype in {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}.items():
            scale = _choose_scale_float8(x, [1, 64], dtype)
            made[f"{name}.{kind}"] = _dequantize_affine_float8(_quantize_affine_float8(x, scale, dtype), scale)
    save_file({key: value.contiguous() for key, value in made.items()}, FILE)


if __name__ == "__main__":
    main()
