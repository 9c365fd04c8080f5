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

from collections.abc import Callable
from dataclasses import dataclass

from qdit.keys import DIT, NEUTRAL, scope_of_a_dit
from qdit.runs import concerns as of
from qdit.runs.concerns import Tree


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


VERSIONS: tuple[Version, ...] = (
    Version("values", 2, "a sample of values is fair in every axis; it saw few channels", of.samples_values),
    Version("adaround", 2, "the penalty begins with the last iteration of the warm-up, as released", of.reconstructs),
    Version("two_levels", 2, "what scales have in common is that of all values, clipped or not", of.clips_two_levels),
    Version(
        "lloyd_max", 2, "the code-book of a whole tensor is a Gaussian's, whatever the batch", of.code_book_of_a_batch
    ),
    Version("channel_shift", 2, "exponents are chosen as on all values; extremes weighed too much", of.has_exponents),
    Version("inner", 2, "a block's last layer is left out, not the last quantized one", of.counts_layers),
    Version(
        "density", 2, "features are compared by their products in float64, probe by probe", of.compares_features, True
    ),
    Version("density_calls", 2, "features are those of both calls of guidance, if it takes two", of.calls_twice, True),
    Version(
        "operands",
        2,
        "operands of attentions have the candidates of their own rule; they had those of weights",
        of.operands_have_a_rule_of_their_own,
    ),
    Version(
        "searched_in_time",
        2,
        "candidates are ranked on items of every group of timesteps; of operands most groups had none",
        of.searches_over_time,
    ),
    Version("long_attentions", 2, "each group of timesteps has a sample", of.searches_long_attentions_over_time),
    Version(
        "searched_attention",
        2,
        "an attention has the steps that were learned beside its own queries' weights, not the first layer's",
        of.learns_attention_beside_searched_weights,
    ),
    Version("text_regions", 2, "the text's inputs behind GELU have two regions, too", of.has_regions_of_a_text),
    Version("aligned", 2, "4,096 values of each channel are kept, however many there are", of.aligns_wide_inputs),
    Version(
        "joint_operands",
        2,
        "tokens that a mask hides count in no range of operands",
        of.rounds_a_masked_joint_attention,
    ),
    Version("streams", 2, "tokens that a mask hides count in no block's error", of.reconstructs_masked_streams),
    Version("learned_streams", 2, "image and text count relative to their mean squares", of.learns_scales_by_streams),
    Version("by_role", 2, "a role's grid is also that of the roles that are like it", of.like_a_named_role),
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
