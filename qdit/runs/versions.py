"""Which parts of a recipe have changed their numbers, and which config keys are newer than shipped results.

A run's id, and the keys of what runs share, are hashes of whole config groups. So that results made before are found
again, and none is taken for another:

* a part whose numbers changed has a version above 1, which enters the hashes of the runs that have this part, and of
  no others;
* a new config key has a neutral value, with which everything is computed as it was without the key; hashes leave the
  key out where it has this value;
* a scope may name roles, and a last layer, that only other families have: they are left out where the model is a DiT.

Imports no torch: a finished run is recognised at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from qdit.keys import DIT, NEUTRAL, scope_of_a_dit
from qdit.quant.named import owned

Tree = dict[str, Any]
TEXT_STREAMS = ("SD3", "Flux", "Flux2Klein", "QwenImage", "HunyuanVideo", "Pipeline")
"""Families, by their class, in which a text may have feed-forward networks of its own."""
MASKED_STREAMS = ("QwenImage", "HunyuanVideo")
"""Those of them that hide tokens of the text behind a prompt's end."""


@dataclass(frozen=True)
class Version:
    """A part that gives other numbers than it once did."""

    part: str
    """Its name in the hashes."""
    number: int
    """2 after the first change."""
    why: str
    """What changed."""
    concerns: Callable[[Tree], bool]
    """Whether a resolved config has this part."""
    calibrates: bool = False
    """Whether calibration data depend on it."""


def nodes(tree: Any) -> Iterator[Tree]:
    """The mappings of a config that describe objects, nested ones too."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from nodes(value)


def _targets(tree: Any) -> set[str]:
    """The names of the classes that a config describes, without their modules."""
    return {str(node["_target_"]).rpartition(".")[2] for node in nodes(tree)}


def _family(config: Tree) -> str:
    """The class that loads a config's model, without its module."""
    return str(config.get("model", {}).get("_target_")).rpartition(".")[2]


def _samples_values(config: Tree) -> bool:
    """Whether ranges or code-books are found from a sample of values, of which extremes alone are exact."""
    from_values = {"Percentile", "PercentileMSE", "MSE"}
    probabilities = {"TwoRegionProbabilities", "ReleasedSumProbabilities", "LogSqrt2Probabilities"}
    attention = _targets(config["attention"])
    static = "StaticActivation" in _targets(config["activation"])
    return (
        (static and not from_values.isdisjoint(_targets(config["activation"])))
        or not attention.isdisjoint(from_values | probabilities)
        or any(
            str(node["_target_"]).endswith(".Reparameterization") and not from_values.isdisjoint(_targets(node))
            for node in nodes(config["transform"])
        )
    )


def _reconstructs(config: Tree) -> bool:
    """Whether blocks are reconstructed, with any schedule."""
    return "AdaRound" in _targets(config["rounding"])


def _format(config: Tree, key: str) -> Tree:
    """What a config's weights or inputs have of grid and scale."""
    return owned(config[key], config["bits"].get(f"{key}_format"))


def _clips_two_levels(config: Tree) -> bool:
    """Whether weights whose scales have two levels have ranges that are narrower than their values."""
    clipping = {"Percentile", "PercentileMSE", "MSE"}
    scale = str(_format(config, "weight")["scale"])
    return scale.startswith("e4m3") and not clipping.isdisjoint(_targets(config["weight"]))


def _code_book_of_a_batch(config: Tree) -> bool:
    """Whether a Lloyd-Max code-book belongs to whole tensors or heads, of which a batch has any number of values."""
    wholes = ("tensor", "head", None)  # uniform attentions do not say it
    parts = [_format(config, key) for key in ("weight", "activation")] + [config["attention"]]
    return any(part.get("grid") == "lloyd_max" and part.get("granularity") in wholes for part in parts)


def _like_a_named_role(config: Tree) -> bool:
    """Whether some roles have grids of their own, in a family where others are like these."""
    return bool(config["weight"].get("by_role")) and config.get("model", {}).get("_target_") != DIT


def _has_exponents(config: Tree) -> bool:
    """Whether channels of inputs have exponents."""
    return any(node.get("shifts") for node in nodes(config["activation"]))


def _counts_layers(config: Tree) -> bool:
    """Whether the errors of layers inside blocks count in a reconstruction."""
    return any(node.get("inner") for node in nodes(config["rounding"]))


def _compares_features(config: Tree) -> bool:
    """Whether calibration points follow the network's features."""
    return "DensityCalibration" in _targets(config["calibration"])


def _operands_have_a_rule_of_their_own(config: Tree) -> bool:
    """Whether ranges of weights or inputs are searched, and those of operands with other candidates."""
    own = ("candidates", "alpha", "beta", "ranking", "margin")
    ranges = [config[group].get("range") or {} for group in ("weight", "activation", "attention")]
    *before, operands = [found for found in ranges if str(found.get("_target_")).startswith("qdit.hessian.")] or [{}]
    searched = operands is ranges[-1] and bool(before)
    return searched and any(operands.get(key) != before[0].get(key) for key in own)


def _calls_twice(config: Tree) -> bool:
    """Whether features are compared of a network that guidance may call twice."""
    return _compares_features(config) and _family(config) in ("Wan", "Wan22", "Flux", "Flux2Klein", "QwenImage")


def _searches_over_time(config: Tree) -> bool:
    """Whether ranges of inputs or operands are searched for each of several groups of timesteps."""
    groups = (config["activation"].get("time") or {}).get("groups", 1)
    ranges = [config[group].get("range") or {} for group in ("activation", "attention")]
    return groups > 1 and any(str(found.get("_target_")).startswith("qdit.hessian.") for found in ranges)


def _learns_attention_beside_searched_weights(config: Tree) -> bool:
    """Whether steps of operands are learned with weights whose sizes or bits a search chooses."""
    return _reconstructs(config) and all("_target_" in config.get(group, {}) for group in ("search", "attention"))


def _aligns_wide_inputs(config: Tree) -> bool:
    """Whether channels of inputs that may be wider than 256 get one range."""
    path = str(
        config.get("model", {}).get("path") or "embedded:"
    )  # embedded networks are 256 wide, and 1,024 behind GELU
    return any(
        str(node["_target_"]).endswith(".Reparameterization")
        and ("ffn_down" in (node.get("roles") or ()) or not path.startswith("embedded:"))
        for node in nodes(config["transform"])
    )


def _rounds_a_masked_joint_attention(config: Tree) -> bool:
    """Whether static operands are rounded where a mask hides tokens of the text behind a prompt's end."""
    static = any(target.startswith(("Static", "Uniform")) for target in _targets(config["attention"]))
    return static and _family(config) in MASKED_STREAMS


def _reconstructs_masked_streams(config: Tree) -> bool:
    """Whether blocks are reconstructed whose text has tokens that a mask hides."""
    return _reconstructs(config) and _family(config) in MASKED_STREAMS


def _learns_scales_by_streams(config: Tree) -> bool:
    """Whether scales of channels are learned by the output of blocks that return image and text."""
    return "Learned" in _targets(config["transform"]) and _family(config) in (*TEXT_STREAMS, "CogVideoX")


def _has_regions_of_a_text(config: Tree) -> bool:
    """Whether inputs behind a GELU have two regions, in a family that may have layers for the text behind one."""
    roles = (config["activation"].get("regions") or {}).get("roles") or ()
    return "ffn_down" in roles and "text_down" not in roles and _family(config) in TEXT_STREAMS


VERSIONS: tuple[Version, ...] = (
    Version("values", 2, "a sample of values is fair in every axis; it saw few channels", _samples_values),
    Version("adaround", 2, "the penalty begins with the last iteration of the warm-up, as released", _reconstructs),
    Version("two_levels", 2, "what scales have in common is that of all values, clipped or not", _clips_two_levels),
    Version(
        "lloyd_max", 2, "the code-book of a whole tensor is a Gaussian's, whatever the batch", _code_book_of_a_batch
    ),
    Version("channel_shift", 2, "exponents are chosen as on all values; extremes weighed too much", _has_exponents),
    Version("inner", 2, "a block's last layer is left out, not the last quantized one", _counts_layers),
    Version(
        "density", 2, "features are compared by their products in float64, probe by probe", _compares_features, True
    ),
    Version("density_calls", 2, "features are those of both calls of guidance, if it takes two", _calls_twice, True),
    Version(
        "operands",
        2,
        "operands of attentions have the candidates of their own rule; they had those of weights",
        _operands_have_a_rule_of_their_own,
    ),
    Version(
        "searched_in_time",
        2,
        "candidates are ranked on items of every group of timesteps; of operands most groups had none",
        _searches_over_time,
    ),
    Version(
        "searched_attention",
        2,
        "an attention has the steps that were learned beside its own queries' weights, not the first layer's",
        _learns_attention_beside_searched_weights,
    ),
    Version("text_regions", 2, "the text's inputs behind GELU have two regions, too", _has_regions_of_a_text),
    Version("aligned", 2, "4,096 values of each channel are kept, however many there are", _aligns_wide_inputs),
    Version(
        "joint_operands", 2, "tokens that a mask hides count in no range of operands", _rounds_a_masked_joint_attention
    ),
    Version("streams", 2, "tokens that a mask hides count in no block's error", _reconstructs_masked_streams),
    Version("learned_streams", 2, "image and text count relative to their mean squares", _learns_scales_by_streams),
    Version("by_role", 2, "a role's grid is also that of the roles that are like it", _like_a_named_role),
)


def versions(config: Tree, calibrating: bool = False) -> dict[str, int]:
    """The versions of the parts that a resolved config has, where they are not 1.

    Args:
        config: the whole resolved config.
        calibrating: of those parts alone on which calibration data depend.
    """
    among = [each for each in VERSIONS if each.calibrates or not calibrating]
    return {each.part: each.number for each in among if each.number > 1 and each.concerns(config)}


def versioned(chosen: Tree, config: Tree) -> Tree:
    """What is to be hashed of a recipe: `chosen` groups without new keys that are neutral, and the parts' versions.

    Args:
        chosen: groups of the config by name; it is not changed.
        config: the whole resolved config.
    """
    kept = without_neutral(chosen)
    if "scope" in kept and config.get("model", {}).get("_target_") == DIT:
        kept["scope"] = scope_of_a_dit(kept["scope"])
    return kept | {"versions": found} if (found := versions(config)) else kept


def without_neutral(chosen: Tree, prefix: str = "") -> Tree:
    """The groups without keys of `NEUTRAL` that have their neutral value; a new group that is left empty goes, too."""
    kept: Tree = {}
    for key, value in chosen.items():
        path = f"{prefix}{key}"
        if path in NEUTRAL and value == NEUTRAL[path]:
            continue
        kept[key] = without_neutral(value, f"{path}.") if isinstance(value, dict) and value else value
    return kept
