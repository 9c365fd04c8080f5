"""Memoize what several metrics share: the jackknife of features, and the comparison of two sets image by image.

FID and its bias-corrected value share one jackknife, precision and recall one search, and in a sweep every run
compares itself with the same full-precision features. Their keys are digests of the bytes, so a stale hit is
impossible. Images are too many to digest; what was found of two sets is kept as long as both sets are.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor

from qdit.eval.base import Samples
from qdit.eval.reference import Reference
from qdit.storage.tensors import tensors_digest

T = TypeVar("T")
KEPT = 16  # results, each of some hundred bytes


def remember(function: Callable[[Tensor, Reference], T]) -> Callable[[Tensor, Reference], T]:
    """Decorate a pure function of features and a reference."""
    seen: OrderedDict[tuple[str, str], T] = OrderedDict()

    @wraps(function)
    def remembered(features: Tensor, reference: Reference) -> T:
        key = (tensors_digest({"": features}), reference.digest)
        if key not in seen:
            seen[key] = function(features, reference)
            if len(seen) > KEPT:
                seen.popitem(last=False)
        return seen[key]

    return remembered


def remember_pair(function: Callable[[Samples, Samples], T]) -> Callable[[Samples, Samples], T]:
    """Decorate a pure function of two sample sets, which must be hashable by identity."""
    seen: WeakKeyDictionary[Samples, WeakKeyDictionary[Samples, T]] = WeakKeyDictionary()

    @wraps(function)
    def remembered(samples: Samples, full_precision: Samples) -> T:
        found = seen.setdefault(samples, WeakKeyDictionary())
        if full_precision not in found:
            found[full_precision] = function(samples, full_precision)
        return found[full_precision]

    return remembered
