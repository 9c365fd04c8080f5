"""What the tests of transforms share: a tiny DiT's data, recipes and outputs."""

import torch

from qdit.activation import DynamicActivation
from qdit.calibration import CalibrationData
from qdit.method import Method
from qdit.quant.ranges import MinMax
from qdit.rounding import Nearest
from qdit.scope import Scope
from qdit.transform import ChannelScaling, Trial
from qdit.transform.statistics import Maximum, MiddleTimestep, PerRow, PerTimestep
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]
EVERYTHING = [*BLOCKS, "adaln", "embedder", "final"]
STATISTICS = [Maximum(), MiddleTimestep(), PerTimestep(), PerRow()]


def points(seed, n=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, 8, 8, generator=generator)
    return CalibrationData(x, torch.linspace(0, 999, n).long(), torch.arange(n) % 10, 4)


def calibration():
    return points(0)


def scaling(roles=EVERYTHING, statistic=None):
    return ChannelScaling(name="salience", roles=roles, alpha=0.5, statistic=statistic or PerTimestep())


def recipe(bits=(4, 8), roles=BLOCKS, **changes):
    given = {
        "scope": Scope(roles=roles),
        "weight": WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
        "activation": DynamicActivation(granularity="row", grid="asymmetric"),
        "rounding": Nearest(),
        "transform": scaling(roles),
        "calibration": None,
    }
    return Method(**given | changes, weight_bits=bits[0], activation_bits=bits[1])


TRIAL = Trial(recipe())


@torch.no_grad()
def output(model, installed=None):
    """The network's output on points that no calibration has seen."""
    unseen = points(1)
    if installed is None:
        return model.denoise(unseen.x, unseen.t, unseen.y)
    with installed.installed(model):
        return model.denoise(unseen.x, unseen.t, unseen.y)


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def wild_factors(transform, model):
    """Factors between 1/8 and 8 for every input, far from what balancing would choose."""
    generator = torch.Generator().manual_seed(3)
    return {
        each.name: 8 ** (2 * torch.rand(each.readers[0].in_features, generator=generator) - 1)
        for each in transform.inputs(model, model.sites())
    }


def unable_to_fold(model, monkeypatch):
    monkeypatch.setattr(model, "folds", list)
    return model
