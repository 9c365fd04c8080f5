"""A small fitted model, and what it puts out, for the tests of checkpoints."""

import torch

from qdit.activation import StaticActivation
from qdit.calibration import CalibrationData
from qdit.method import Method, quantize
from qdit.quant.ranges import MinMax
from qdit.quantized import Quantized
from qdit.rounding import Nearest
from qdit.scope import Scope
from qdit.transform import ChannelScaling
from qdit.transform.statistics import Maximum
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]


def refuse(*_: object, **__: object):
    raise AssertionError("calibration data is not needed")


def points() -> CalibrationData:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, 8, 8, generator=generator)
    return CalibrationData(x, torch.linspace(0, 999, 6).long(), torch.arange(6) % 10, 3)


def fitted(model, roles=BLOCKS) -> Quantized:
    """Static inputs, behind a scaling that is folded where it can be."""
    recipe = Method(
        scope=Scope(roles=roles),
        weight=WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
        activation=StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax()),
        rounding=Nearest(),
        weight_bits=4,
        activation_bits=8,
        calibration=None,
        transform=ChannelScaling(name="smooth", roles=BLOCKS, alpha=0.5, statistic=Maximum()),
    )
    return quantize(model, recipe, points)


def output(model, quantized) -> torch.Tensor:
    data = points()
    with quantized.installed(model), torch.no_grad():
        return model.denoise(data.x, data.t, data.y)
