"""Function-preserving rewrites that make a network easier to quantize."""

from qdit.transform.base import Rewrite, RunTime, Transform, rewritten
from qdit.transform.chain import Chain
from qdit.transform.reparam import Reparameterization
from qdit.transform.rotation import Hadamard
from qdit.transform.scaling import ChannelScaling
from qdit.transform.trial import Trial

__all__ = [
    "Chain",
    "ChannelScaling",
    "Hadamard",
    "Reparameterization",
    "Rewrite",
    "RunTime",
    "Transform",
    "Trial",
    "rewritten",
]
