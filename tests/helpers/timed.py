"""Points over time, and recipes with static inputs, for tests of groups of timesteps and of regions."""

import torch

from qdit.activation import StaticActivation
from qdit.calibration import CalibrationData
from qdit.method import Method
from qdit.quant.ranges import MinMax
from qdit.rounding import Nearest
from qdit.scope import Scope
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]


DOWN, UP = "transformer_blocks.1.ff.net.2", "transformer_blocks.1.ff.net.0.proj"


def points(seed=0, n=8):
    x = torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    x = x * torch.linspace(0.5, 2, n).view(-1, 1, 1, 1)  # ranges change over time
    visited = list(range(0, 1000, 125))[::-1]
    return CalibrationData(x, torch.tensor(visited[:n]), torch.arange(n) % 10, 3, visited=visited)


def static(**changes):
    return StaticActivation(**{"granularity": "tensor", "grid": "asymmetric", "range": MinMax()} | changes)


def recipe(activation, attention=None, bits=(8, 8), **changes):
    given = {
        "scope": Scope(roles=BLOCKS),
        "weight": WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
        "rounding": Nearest(),
        "calibration": None,
    }
    parts = given | {"activation": activation, "attention": attention} | changes
    return Method(**parts, weight_bits=bits[0], activation_bits=bits[1])


@torch.no_grad()
def output(model, quantized=None, data=None):
    data = data or points(1)
    if quantized is None:
        return model.denoise(data.x, data.t, data.y)
    with quantized.installed(model):
        return model.denoise(data.x, data.t, data.y)


def error(model, quantized, data=None):
    return (output(model, quantized, data) - output(model, None, data)).square().mean().item()
