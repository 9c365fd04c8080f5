"""Names of a config that records share with it: its groups, the keys that came later, and dotted keys.

Imports neither torch nor Hydra, so that tables are read at once.
"""

from collections.abc import Mapping
from typing import Any

COMPONENTS = (
    *("scope", "calibration", "transform", "weight", "activation", "attention", "rounding", "repair", "correction"),
    "search",
)
"""The config groups that a recipe picks its parts from."""
RECIPE_KEYS = (*COMPONENTS, "bits")
NEUTRAL: Mapping[str, Any] = {
    "model.vae_revision": None,
    "model.mask_negative": True,
    "repair": {"name": "none"},
    **dict.fromkeys(("rounding.drop", "rounding.inner"), 0.0),
    "rounding.units": "blocks",
    "rounding.scale_aware": False,
    **dict.fromkeys((f"{group}.range.unit" for group in ("weight", "activation", "attention")), "layer"),
    **dict.fromkeys((f"{group}.range.eliminate" for group in ("weight", "activation", "attention")), 0.0),
    "activation.range.scheme": "fixed",
    **dict.fromkeys(("attention.renormalise", "attention.probabilities.renormalise", "attention.balance"), False),
    "activation.columns": "joined",
    **dict.fromkeys(("weight.scale", "activation.scale", "bits.weight_format", "bits.activation_format")),
}
"""New keys by their dotted path in the config, with their neutral value."""
DIT = "qdit.model.dit.DiT"
FOREIGN = (
    *("cross_q", "cross_kv", "cross_out", "text_qkv", "text_out", "text_up", "text_down", "image_kv"),
    *("parallel_in", "parallel_out", "modulation", "refiner"),
)
"""Roles of layers that a class-conditional DiT does not have: a scope that names them is the same scope there."""


def scope_of_a_dit(scope: Mapping[str, Any]) -> dict[str, Any]:
    """A scope's config without what it names for other families: their roles, and their last layer, `proj_out`."""
    kept = {"roles": FOREIGN, "include": ("proj_out",)}
    return {**scope} | {key: [each for each in scope[key] if each not in foreign] for key, foreign in kept.items()}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A config by dotted keys as the mappings that it was.

    >>> nested({"a.b": 1, "a.c.d": 2, "e": 3})
    {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
    """
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *parts, last = key.split(".")
        place = found
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return found
