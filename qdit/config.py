"""From a composed config to objects: `build`, the only call of Hydra's instantiate, and `check`.

Imports no torch by itself; building imports what the targets need.
"""

import inspect
import logging
from collections.abc import Iterator
from math import isfinite
from typing import Any, Literal, get_type_hints

from hydra import utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qdit import checked
from qdit.errors import UserError, from_problems
from qdit.keys import flatten
from qdit.quant import named
from qdit.storage import names

_NAMES = ("study", "name")
_NAMED = ("quantizer", "bits", "model", "dataset")  # groups whose `name` stands in tables
_KEYS = {
    **dict.fromkeys(("num_samples", "batch_size"), checked.Samples),
    **dict.fromkeys(("save_checkpoint", "overwrite", "dry", "allow_download", "compile"), bool),
    "execution": Literal["auto", "int8", "fp8", "simulated", "openvino"],
    "dtype": Literal["float32", "bfloat16", "float16"],
}


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain Python, interpolations resolved.

    Raises:
        UserError: a mandatory value is missing or an interpolation has no target.
    """
    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise UserError(f"no value for {', '.join(missing)}; give one, as in {missing[0]}=VALUE")
        config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(f"the config cannot be resolved: {error}") from error
    if problems := _place_problems(config):
        raise from_problems(problems, "this config")
    return config


def _place_problems(config: dict[str, Any]) -> list[str]:
    """Values that cannot be the name of a folder; everything else is checked later, where torch may be imported."""
    found = [f"{k}={config[k]!r}; {names.problem(config[k])}" for k in _NAMES if not names.fits(config[k])]
    found += [
        f"{k}.name={config[k]['name']!r}; a name is text"
        for k in _NAMED
        if isinstance(config.get(k), dict) and not isinstance(config[k].get("name", ""), str)
    ]
    found += [f"{k}={v!r}; a finite number is needed" for k, v in _numbers(config) if not isfinite(v)]
    found += [
        f"{k}={config[k]!r}; a folder is needed"
        for k in ("runs_dir", "cache_dir")
        if not isinstance(config[k], str) or not config[k].strip()
    ]
    found += [
        f"model.{k}={config['model'][k]!r}; a folder, a hub id or null is needed"
        for k in ("path", "vae_path")
        if not isinstance(config["model"].get(k), str | None)
    ]
    return found


def _numbers(tree: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every floating-point number of a config, in lists too, by its dotted key."""
    if isinstance(tree, float):
        yield path, tree
    elif isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _numbers(value, f"{path}.{key}" if path else str(key))


def build(node: Any) -> Any:
    """The object that a config node describes; lists and dicts arrive as plain Python.

    Raises:
        UserError: the target refuses its arguments.
    """
    try:
        return utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        message = str(cause) if cause else str(error).split("\nfull_key")[0].replace("\n", " ")
        raise UserError(message) from error


def check(config: dict[str, Any]) -> None:
    """Raise one error that names every problem of a resolved config that can be seen without a model.

    Raises:
        UserError: at least one problem.
    """
    problems = checked.problems(_KEYS, config)
    flat = flatten(config)
    problems += checked.problems({key: checked.Whole for key in flat if key.split(".")[-1] == "seed"}, flat)
    for key, value in config.items():
        if isinstance(value, dict):
            problems += type_problems(value, key)
    problems += _bit_problems(config["bits"]) if "bits" in config else []
    if config.get("execution") == "openvino" and config.get("compile") is True:
        problems.append("compile=true with execution=openvino, whose network is one graph already; use compile=false")
    if problems:
        raise from_problems(problems, "this config")


def _bit_problems(bits: dict[str, Any]) -> list[str]:
    found = checked.problems({"weight": checked.Bits, "activation": checked.Bits}, bits, "bits") + named.problems(bits)
    label = "" if found else named.label(bits)
    if not found and bits["name"] != label:
        # Tables are wrong when a name and its values disagree, so the name is derived, never trusted.
        found.append(f"bits.name={bits['name']!r} but the values say {label!r}; set bits.name={label} too")
    return found


def _class(name: str) -> Any:
    """The class of a `_target_`, without the line that Hydra logs where there is none: the message is ours."""
    log = logging.getLogger(utils.__name__)
    before, log.disabled = log.disabled, True
    try:
        return utils.get_class(name)
    finally:
        log.disabled = before


def type_problems(node: dict[str, Any], path: str) -> list[str]:
    """Arguments of `_target_`s whose simple types are wrong, and arguments that the target does not know."""
    found: list[str] = []
    if "_target_" in node:
        try:
            target = _class(node["_target_"])
        except Exception as error:
            return [f"{path}._target_={node['_target_']} cannot be imported: {' '.join(str(error).split())}"]
        hints = get_type_hints(target.__init__, include_extras=True)
        known = inspect.signature(target).parameters
        given = {key: value for key, value in node.items() if not key.startswith("_")}
        found += [
            f"{path}.{key} is not an argument of {target.__name__}; it has {', '.join(known)}"
            for key in given
            if key not in known
        ]
        found += checked.problems(hints, given, path)
    for key, value in node.items():
        if isinstance(value, dict):
            found += type_problems(value, f"{path}.{key}")
    return found
