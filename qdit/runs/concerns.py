"""Whether a resolved config has a part whose numbers changed (`qdit.runs.versions`). Imports no torch."""

from collections.abc import Iterator
from typing import Any

from qdit.keys import DIT
from qdit.quant.named import owned

Tree = dict[str, Any]
TEXT_STREAMS = ("SD3", "Flux", "Flux2Klein", "QwenImage", "HunyuanVideo", "Pipeline")
"""Families, by their class, in which a text may have feed-forward networks of its own."""
MASKED_STREAMS = ("QwenImage", "HunyuanVideo")
"""Those of them that hide tokens of the text behind a prompt's end."""


def nodes(tree: Any) -> Iterator[Tree]:
    """The mappings of a config that describe objects, nested ones too."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from nodes(value)


def targets(tree: Any) -> set[str]:
    """The names of the classes that a config describes, without their modules."""
    return {str(node["_target_"]).rpartition(".")[2] for node in nodes(tree)}


def family(config: Tree) -> str:
    """The class that loads a config's model, without its module."""
    return str(config.get("model", {}).get("_target_")).rpartition(".")[2]


def samples_values(config: Tree) -> bool:
    """Whether ranges or code-books are found from a sample of values, of which extremes alone are exact."""
    from_values = {"Percentile", "PercentileMSE", "MSE"}
    probabilities = {"TwoRegionProbabilities", "ReleasedSumProbabilities", "LogSqrt2Probabilities"}
    attention = targets(config["attention"])
    static = "StaticActivation" in targets(config["activation"])
    return (
        (static and not from_values.isdisjoint(targets(config["activation"])))
        or not attention.isdisjoint(from_values | probabilities)
        or any(
            str(node["_target_"]).endswith(".Reparameterization") and not from_values.isdisjoint(targets(node))
            for node in nodes(config["transform"])
        )
    )


def reconstructs(config: Tree) -> bool:
    """Whether blocks are reconstructed, with any schedule."""
    return "AdaRound" in targets(config["rounding"])


def owned_format(config: Tree, key: str) -> Tree:
    """What a config's weights or inputs have of grid and scale."""
    return owned(config[key], config["bits"].get(f"{key}_format"))


def clips_two_levels(config: Tree) -> bool:
    """Whether weights whose scales have two levels have ranges that are narrower than their values."""
    clipping = {"Percentile", "PercentileMSE", "MSE"}
    scale = str(owned_format(config, "weight")["scale"])
    return scale.startswith("e4m3") and not clipping.isdisjoint(targets(config["weight"]))


def code_book_of_a_batch(config: Tree) -> bool:
    """Whether a Lloyd-Max code-book belongs to whole tensors or heads, of which a batch has any number of values."""
    wholes = ("tensor", "head", None)  # uniform attentions do not say it
    parts = [owned_format(config, key) for key in ("weight", "activation")] + [config["attention"]]
    return any(part.get("grid") == "lloyd_max" and part.get("granularity") in wholes for part in parts)


def like_a_named_role(config: Tree) -> bool:
    """Whether some roles have grids of their own, in a family where others are like these."""
    return bool(config["weight"].get("by_role")) and config.get("model", {}).get("_target_") != DIT


def has_exponents(config: Tree) -> bool:
    """Whether channels of inputs have exponents."""
    return any(node.get("shifts") for node in nodes(config["activation"]))


def counts_layers(config: Tree) -> bool:
    """Whether the errors of layers inside blocks count in a reconstruction."""
    return any(node.get("inner") for node in nodes(config["rounding"]))


def compares_features(config: Tree) -> bool:
    """Whether calibration points follow the network's features."""
    return "DensityCalibration" in targets(config["calibration"])


def operands_have_a_rule_of_their_own(config: Tree) -> bool:
    """Whether ranges of weights or inputs are searched, and those of operands with other candidates."""
    own = ("candidates", "alpha", "beta", "ranking", "margin")
    ranges = [config[group].get("range") or {} for group in ("weight", "activation", "attention")]
    *before, operands = [found for found in ranges if str(found.get("_target_")).startswith("qdit.hessian.")] or [{}]
    searched = operands is ranges[-1] and bool(before)
    return searched and any(operands.get(key) != before[0].get(key) for key in own)


def calls_twice(config: Tree) -> bool:
    """Whether features are compared of a network that guidance may call twice."""
    return compares_features(config) and family(config) in ("Wan", "Wan22", "Flux", "Flux2Klein", "QwenImage")


def searches_over_time(config: Tree) -> bool:
    """Whether ranges of inputs or operands are searched for each of several groups of timesteps."""
    groups = (config["activation"].get("time") or {}).get("groups", 1)
    ranges = [config[group].get("range") or {} for group in ("activation", "attention")]
    return groups > 1 and any(str(found.get("_target_")).startswith("qdit.hessian.") for found in ranges)


def searches_long_attentions_over_time(config: Tree) -> bool:
    """Whether operands are searched by groups of timesteps, of which a long attention may have had too few samples.

    Attentions of the embedded models, and of DiT at 256 pixels, have enough under the default.
    """
    embedded = str(config.get("model", {}).get("path") or "embedded:").startswith("embedded:")
    operands = (config["attention"].get("range") or {}).get("_target_")
    return searches_over_time(config) and str(operands).startswith("qdit.hessian.") and not embedded


def learns_attention_beside_searched_weights(config: Tree) -> bool:
    """Whether steps of operands are learned with weights whose sizes or bits a search chooses."""
    return reconstructs(config) and all("_target_" in config.get(group, {}) for group in ("search", "attention"))


def aligns_wide_inputs(config: Tree) -> bool:
    """Whether channels of inputs that may be wider than 256 get one range."""
    path = str(
        config.get("model", {}).get("path") or "embedded:"
    )  # embedded networks are 256 wide, and 1,024 behind GELU
    return any(
        str(node["_target_"]).endswith(".Reparameterization")
        and ("ffn_down" in (node.get("roles") or ()) or not path.startswith("embedded:"))
        for node in nodes(config["transform"])
    )


def rounds_a_masked_joint_attention(config: Tree) -> bool:
    """Whether static operands are rounded where a mask hides tokens of the text behind a prompt's end."""
    static = any(target.startswith(("Static", "Uniform")) for target in targets(config["attention"]))
    return static and family(config) in MASKED_STREAMS


def reconstructs_masked_streams(config: Tree) -> bool:
    """Whether blocks are reconstructed whose text has tokens that a mask hides."""
    return reconstructs(config) and family(config) in MASKED_STREAMS


def learns_scales_by_streams(config: Tree) -> bool:
    """Whether scales of channels are learned by the output of blocks that return image and text."""
    return "Learned" in targets(config["transform"]) and family(config) in (*TEXT_STREAMS, "CogVideoX")


def has_regions_of_a_text(config: Tree) -> bool:
    """Whether inputs behind a GELU have two regions, in a family that may have layers for the text behind one."""
    roles = (config["activation"].get("regions") or {}).get("roles") or ()
    return "ffn_down" in roles and "text_down" not in roles and family(config) in TEXT_STREAMS
