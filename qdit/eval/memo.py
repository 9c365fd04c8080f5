"""Memoize what several metrics share: the jackknife of features.

FID and its bias-corrected value share one jackknife, precision and recall one search, and in a sweep every run
compares itself with the same full-precision features. Their keys are digests of the bytes, so a stale hit is
impossible.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from torch import Tensor

from qdit.eval.reference import Reference
from qdit.storage.tensors import tensors_digest

T = TypeVar("T")
KEPT = 16  # results, each of some hundred bytes


def remember(function: Callable[[Tensor, Reference, Tensor], T]) -> Callable[[Tensor, Reference, Tensor], T]:
    """Decorate a pure function of features, a reference and groups of the jackknife."""
    seen: OrderedDict[tuple[str, str], T] = OrderedDict()

    @wraps(function)
    def remembered(features: Tensor, reference: Reference, groups: Tensor) -> T:
        key = (tensors_digest({"features": features, "groups": groups}), reference.digest)
        if key not in seen:
            seen[key] = function(features, reference, groups)
            if len(seen) > KEPT:
                seen.popitem(last=False)
        return seen[key]

    return remembered
