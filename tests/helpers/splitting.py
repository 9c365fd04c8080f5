"""What the tests of low-rank branches share: transforms, recipes and a network that has large singular parts."""

import torch
from helpers.rewriting import (
    BLOCKS,
    recipe,
    scaling,
)

from qdit.activation import DynamicActivation, StaticActivation
from qdit.quant.ranges import MinMax
from qdit.transform import Chain, Hadamard, LowRank
from qdit.transform.statistics import Maximum
from qdit.weight import WeightGrid

BLOCK = "transformer_blocks.1"
NAME = f"{BLOCK}.ff.net.2"
FULL = 32
"""The rank of every weight of the tiny model's blocks."""
STATIC = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())


def lowrank(rank=4, iterations=3, roles=BLOCKS):
    return LowRank(name="lowrank", roles=roles, rank=rank, iterations=iterations, seed=0)


def chain(*names, roles=BLOCKS, **changes):
    steps = {
        "smooth": scaling(roles, Maximum()),
        "lowrank": lowrank(roles=roles, **changes),
        "hadamard": Hadamard(name="hadamard", roles=roles, block=None, seed=0),
    }
    return Chain(name="chain", steps={name: steps[name] for name in names})


def svdquant(rank=4, iterations=3, bits=(4, 4), **changes):
    transform = chain("smooth", "lowrank", rank=rank, iterations=iterations)
    symmetric = {"granularity": "group", "group_size": 16, "grid": "symmetric"}
    parts = {"weight": WeightGrid(**symmetric, range=MinMax()), "activation": DynamicActivation(**symmetric)}
    return recipe(bits, **parts | {"transform": transform} | changes)


def matrix(seed=0, shape=(48, 40)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spoiled(model):
    """The tiny model, each weight of its blocks with a few large singular values."""
    for n, site in enumerate(s for s in model.sites() if s.role in BLOCKS):
        layer = model.denoiser.get_submodule(site.name)
        out, channels = layer.weight.shape
        with torch.no_grad():
            layer.weight += matrix(n, (out, 2)) @ matrix(100 + n, (2, channels)) / channels**0.5
    return model
