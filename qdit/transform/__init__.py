"""Function-preserving rewrites that make a network easier to quantize."""

from qdit.transform.alpha import FixedAlpha, GridAlpha
from qdit.transform.awq import ActivationAware
from qdit.transform.base import Rewrite, Transform, joined, rewritten
from qdit.transform.blocks import PermutedHadamard, RegularHadamard
from qdit.transform.chain import Chain
from qdit.transform.learned import Learned
from qdit.transform.lowrank import LowRank
from qdit.transform.reparam import Reparameterization
from qdit.transform.rotation import Hadamard, SelectiveHadamard
from qdit.transform.scaling import ChannelScaling
from qdit.transform.shift import Centred
from qdit.transform.timestep_aware import TimestepAware
from qdit.transform.trial import Trial

__all__ = [
    "ActivationAware",
    "Centred",
    "Chain",
    "ChannelScaling",
    "FixedAlpha",
    "GridAlpha",
    "Hadamard",
    "Learned",
    "LowRank",
    "PermutedHadamard",
    "RegularHadamard",
    "Reparameterization",
    "Rewrite",
    "SelectiveHadamard",
    "TimestepAware",
    "Transform",
    "Trial",
    "joined",
    "rewritten",
]
