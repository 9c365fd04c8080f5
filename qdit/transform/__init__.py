"""Function-preserving rewrites that make a network easier to quantize."""

from qdit.transform.base import Rewrite, Transform, rewritten
from qdit.transform.scaling import ChannelScaling

__all__ = ["ChannelScaling", "Rewrite", "Transform", "rewritten"]
