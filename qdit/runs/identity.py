"""Identity of runs and of metrics, as digests: which runs are the same, and which numbers of a metric are comparable.

A run's id is a digest of its *science*, the part of its config that results depend on. What a metric's number depends
on besides the samples has a digest, too: a record keeps it with each metric, so that a number made with another
reference is computed again and never shares a column of a table with the new ones. Imports no torch: a finished run is
recognised at once.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

from qdit.assets import PROMPTS, captions_file, folder_of, places
from qdit.checkpoint.manifest import is_loaded, with_recipe
from qdit.errors import UserError
from qdit.keys import RECIPE_KEYS
from qdit.model.encoder import encoder_digest, encodes, reads_text
from qdit.model.hub import named, pinned
from qdit.runs.versions import versioned, without_neutral
from qdit.storage.digest import content_digest, digest, sha256
from qdit.storage.names import component
from qdit.storage.run_folder import RunDir
from qdit.storage.walk import files_below
from qdit.storage.weights import WEIGHTS, brought_digest, weight_file

SCIENCE = 1  # raised when the mathematics change, so that old results are not taken for new ones
# What a result depends on. Not here: device, logger, metrics, directories, and names that only label.
PROTOCOL_KEYS = ("model", "dataset", "sampler", "seed", "num_samples", "batch_size", "dtype")
FINDING = ("weights", "allow_download", "head", "python", "folder", "timeout")
"""Keys of a metric that say how a file or a program is found; which file it must be, the extractor's name says."""
LISTS = {"motions": 2, "motions_held_out": 2}
"""Lists of prompts of `EmojiPrompts` that are not those of their first version: no emoji comes twice."""
WITHOUT_REFERENCE = (
    "qdit.eval.distribution.InceptionScore",
    "qdit.eval.video.",
    "qdit.eval.to_full.",
    "qdit.eval.text.",
    "qdit.eval.flow.",
    "qdit.dataset.scores.",
)
"""Metrics, and modules of metrics, with an extractor that read no reference."""


def science(config: dict) -> dict:
    """The part of a resolved config that a result depends on; full precision does not depend on the recipe."""
    protocol = without_neutral({k: config[k] for k in PROTOCOL_KEYS})
    protocol["dataset"] = protocol["dataset"] | written(config["dataset"])
    if is_full_precision(config) or is_external(config):  # what others did is in the weights
        return protocol
    if (checkpoint := config["quantizer"].get("checkpoint")) is not None:  # all there is to know of a loaded model
        return protocol | {"checkpoint": checkpoint}
    chosen = protocol | versioned({k: config[k] for k in RECIPE_KEYS if k in config}, config)
    if isinstance(path := chosen["search"].get("policy"), str):  # what the file says, wherever it lies
        given = Path(path).expanduser()
        found = [file for file in (given, given / "policy.yaml") if file.is_file()]
        chosen["search"] = chosen["search"] | {"policy": content_digest(found, found[0].parent) if found else path}
    return chosen


def written(dataset: dict[str, Any]) -> dict[str, str]:
    """What the files say that a data set's config names, as digests by key; lists that come with qdit tell by name.

    Of such a list that has changed since there is the version, too.
    """
    named = {key: value for key, value in dataset.items() if key.endswith("file") and isinstance(value, str)}
    files = {key: captions_file(value) for key, value in named.items()}
    brought = {key: file for key, file in files.items() if file.parent != PROMPTS and file.is_file()}
    found = {f"{key}_says": content_digest([file], file.parent) for key, file in brought.items()}
    drawn = str(dataset.get("_target_")).endswith(".EmojiPrompts")
    newer = {key: LISTS[value] for key, value in named.items() if drawn and value in LISTS}
    return found | {f"{key}_version": str(number) for key, number in newer.items()}


def is_full_precision(config: dict) -> bool:
    """Whether the scope selects nothing, so that the run is the reference of its protocol."""
    scope = config.get("scope")
    if scope is None:  # nothing here says what is quantized: others did it
        return False
    return scope["roles"] == [] and scope["include"] == []


def is_external(config: dict[str, Any]) -> bool:
    """Whether a run judges what others quantized (`model=pipeline`)."""
    return config["model"].get("against") is not None


def weights(config: dict[str, Any]) -> str:
    """A digest of the checkpoint's weights and configs, so that a new one never meets stale results.

    Hub ids hash as text with their commits (see `qdit.model.hub`).
    """
    model = config["model"]
    found = [_weights_digest(model["path"], model.get("revision"))]
    if model.get("vae_path"):
        found.append(_weights_digest(model["vae_path"], model.get("vae_revision")))
    if "against" in model:
        return "-".join(_whole_digest(model[key]) for key in ("path", "against") if model[key] is not None)
    if reads_text(model):
        found.append(encoder_digest(model["path"], model.get("revision"), Path(config["cache_dir"])) or "no-encoder")
    return "-".join(found)


def _weights_digest(path: str | None, revision: str | None) -> str:
    folder = folder_of(path)
    found = files_below(folder) if folder.is_dir() else []
    files = [
        file
        for file in found
        if file.name.endswith((".safetensors", ".json")) and not encodes(file.relative_to(folder).parts[0])
    ]
    return content_digest(files, folder) if files else digest(named(path, revision))


def _whole_digest(path: str) -> str:
    """Of all files of a pipeline, its text encoders among them."""
    folder = Path(path).expanduser()
    return content_digest(files_below(folder), folder) if folder.is_dir() else digest(path)


def settings(node: dict[str, Any], dataset: str, cache_dir: Path) -> str:
    """Eight hex digits of a metric's config and of the reference file that it would be computed with.

    Args:
        node: the metric's resolved config, `_target_` included.
        dataset: name of the data set's reference, `dataset.reference`.
        cache_dir: where `qdit-refs` keeps references.
    """
    content = None
    if (extractor := node.get("extractor")) and not str(node.get("_target_")).startswith(WITHOUT_REFERENCE):
        found = next((place for place in places(dataset, extractor, cache_dir) if place.is_file()), None)
        content = sha256(found) if found else None
    about = {"metric": {k: v for k, v in node.items() if k not in FINDING}, "reference": content}
    # A file that the user brings may be any, of which only its digest tells.
    file = weight_file(extractor) if extractor else None
    if file is not None and (brought := file.find(node.get("weights"))) is not None:
        about["weights"] = brought_digest(brought)
    if "head" in node and (head := WEIGHTS["laion_head"].find(node["head"])) is not None:
        about["head"] = brought_digest(head)
    return digest(about)


def search_settings(search: dict[str, Any], dataset: str, cache_dir: Path) -> dict[str, Any]:
    """A search's config with the metric of its objective, if it has one, as the digest that `settings` gives."""
    if (objective := search.get("objective")) is None:
        return search
    return search | {"objective": objective | {"metric": settings(objective["metric"], dataset, cache_dir)}}


def canonical(config: dict[str, Any]) -> dict[str, Any]:
    """The config under the one name of what it does.

    A scope that selects nothing is full precision; the recipe of `quantizer=load` is that of the run that saved; a hub
    id has the commit of its revision.
    """
    config = pinned(config)
    if "against" in config["model"]:
        return _judged(config)
    if is_loaded(config):
        return with_recipe(config)
    return full_precision(config) if is_full_precision(config) else config


def _judged(config: dict[str, Any]) -> dict[str, Any]:
    """A config of `model=pipeline` under the name of the folder that is judged.

    Raises:
        UserError: a recipe is given, too, or nothing to compare with.
    """
    if not is_external(config):
        raise UserError("model.against=null; give the folder of the same pipeline in full precision")
    if config["quantizer"]["name"] != "external":
        raise UserError(
            f"model=pipeline judges what others quantized, and quantizer={config['quantizer']['name']} is a recipe of "
            "qdit's: leave it out, or choose the model's own option"
        )
    called = Path(config["model"]["path"]).expanduser().resolve().name
    name = called if config["name"] == "external-external" else config["name"]
    return config | {"quantizer": {"name": called, "paper": None}, "name": name}


def full_precision(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the reference run under the same protocol."""
    reference = deepcopy(config)
    if is_external(config):
        reference["model"] |= {"path": config["model"]["against"], "against": None}
        reference["scope"] = {}
    reference["scope"] |= {"roles": [], "include": []}
    reference["bits"] = {"name": "w16a16", "weight": 16, "activation": 16}
    reference["quantizer"] = {"name": "fp", "paper": None}
    return reference | {"name": "fp"}


def run_id(config: dict[str, Any]) -> str:
    """Eight hex digits of `identity`."""
    return digest(identity(config))


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Everything the result depends on, the checkpoint's contents included."""
    found = science(config)
    if "search" in found:
        where = config["dataset"]["reference"], Path(config["cache_dir"])
        found["search"] = search_settings(found["search"], *where)
    return {"version": SCIENCE, "science": found, "weights": weights(config)}


def run_dir(config: dict[str, Any]) -> RunDir:
    """Where a config's run lives."""
    study, name = (component(config[key], key) for key in ("study", "name"))  # a checkpoint may have brought the name
    return RunDir(Path(config["runs_dir"]) / study / f"{name}-{run_id(config)}")


def wanted_metrics(config: dict[str, Any]) -> dict[str, str]:
    """Name -> digest of its settings and reference, of every metric in the config."""
    where = config["dataset"]["reference"], Path(config["cache_dir"])
    return {name: settings(node, *where) for name, node in (config.get("eval") or {}).items()}
