"""Recipes, data and readings that the tests of AdaRound share."""

from pathlib import Path

import torch

from qdit.activation import DynamicActivation, StaticActivation
from qdit.attention import UniformAttention
from qdit.calibration import CalibrationData
from qdit.method import Method
from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.ranges import MinMax
from qdit.scope import Scope
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]
ALL = [*BLOCKS, "adaln", "embedder", "final"]
CONF = Path(__file__).parents[2] / "conf"
QUICK = {"iterations": 6, "batch_size": 4, "rate": 0.1}
STATIC = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())
TOKEN = DynamicActivation(granularity="row", grid="asymmetric")
OPERANDS = UniformAttention(operands=["q", "k", "v", "probs"], grid="asymmetric", probability_bits=8, range=MinMax())


def recipe(rounding, roles=ALL, bits=(4, 8), activation=STATIC, weight=None, **parts):
    return Method(
        scope=Scope(roles=roles),
        weight=WeightGrid(**{"granularity": "row", "grid": "asymmetric", "range": MinMax()} | (weight or {})),
        activation=activation,
        rounding=rounding,
        weight_bits=bits[0],
        activation_bits=bits[1],
        calibration=None,
        **parts,
    )


def points(count, seed=0) -> CalibrationData:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 11, (count,), generator=random)
    x = torch.randn(count, 4, 8, 8, generator=random)
    return CalibrationData(x, torch.randint(0, 1000, (count,), generator=random), labels, 4)


def codes(quantized):
    return {name: layer.rounded.codes for name, layer in quantized.layers.items() if layer.rounded is not None}


def steps(quantized):
    """Every static scale of a quantized network, by the path of its quantizer."""
    modules = {**quantized.layers, **quantized.attention}
    return {
        f"{name}.{path}": m.scale
        for name, layer in modules.items()
        for path, m in layer.named_modules()
        if isinstance(m, StaticQuantizer)
    }


@torch.no_grad()
def network_error(model, quantized, data):
    expected = model.denoise(data.x, data.t, data.y)
    with quantized.installed(model):
        return float((model.denoise(data.x, data.t, data.y) - expected).square().mean())
