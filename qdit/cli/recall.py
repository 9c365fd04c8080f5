"""The command line that makes a run again, from the config in its record.

A record has the composed config and not the words that it was composed of. They are found again: the recipe and bits by
their names, whatever differs from what these compose by the option that is nearest to it, and what is then still left
key by key. Overlays of `conf/experiment` give recipes names of their own and are found by these; any other name is
given to the recipe that it is nearest to. What an earlier qdit did not record, and parts that changed since
(`qdit.runs.versions`), are left to the present one. Composing takes most of the time, so that it is done once a recipe;
bits are put into its place.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qdit.assets import CONF
from qdit.cli.design import NO_METHOD
from qdit.cli.quick_hydra import quicken
from qdit.cli.words import as_text, as_value
from qdit.config import resolved
from qdit.errors import UserError
from qdit.keys import COMPONENTS, flatten, nested
from qdit.runs.identity import PROTOCOL_KEYS
from qdit.runs.versions import versioned, without_neutral
from qdit.storage.names import counted
from qdit.tables.select import FULL_PRECISION

Flat = dict[str, Any]
_OPEN = re.compile(r"\$\{(\w+)\}")
"""A top-level key that a name depends on."""


def command(configs: Sequence[Mapping[str, Any]]) -> str:
    """The command line of runs that differ in seeds alone.

    Args:
        configs: of the runs' records, by dotted keys.

    Returns:
        An empty text where a recipe, or bits, are none of this qdit's.

    >>> command([{"quantizer.name": "nobody's", "bits.name": "w4a8"}])
    ''
    """
    return recalled(configs)[0]


def recalled(configs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """As `command`, and behind it why there is none; the other of the two is empty.

    >>> recalled([{"quantizer.name": "nobody's", "bits.name": "w4a8"}])[1]
    "recipe nobody's is in no file of conf/, and like none there; --config-dir knows it"
    """
    first = dict(configs[0])
    try:
        words = _words(first)
    except UserError as error:
        return "", str(error)
    except (HydraException, OmegaConfBaseException, KeyError, TypeError, ValueError, AttributeError):
        return "", "this qdit does not compose what was recorded"
    seeds = sorted({key for config in configs for key in config if key.split(".")[-1] == "seed"})
    several = {key: sorted({as_value(config.get(key)) for config in configs}, key=counted) for key in seeds}
    several = {key: found for key, found in several.items() if len(found) > 1}
    words = [word for word in words if word.partition("=")[0] not in several]
    words += [f"{key}={','.join(found)}" for key, found in several.items()]
    overlaid = any(word.startswith("experiment=") for word in words)  # which may name a study
    if (study := first.get("study")) is not None and (overlaid or study != "default"):
        words.append(as_text(f"study={as_value(study)}"))
    return shlex.join(["qdit", *(["-m"] if several else []), *words]), ""


def _words(config: Flat) -> list[str]:
    """The words behind a config, without the study.

    Raises:
        UserError: the recipe's name is no option, and nothing here makes what was recorded.
    """
    path = config.get("quantizer.path")  # of quantizer=load, which has its recipe and bits from a checkpoint
    bare = path is not None or config["quantizer.name"] == FULL_PRECISION
    wanted = _science(nested(config), bare)
    bits = {key.removeprefix("bits."): value for key, value in config.items() if key.startswith("bits.")}
    own = config["quantizer.name"] in _recipes()
    start = (f"quantizer={config['quantizer.name']}",) if own else _start(config, wanted, tuple(bits.items()))
    words = [*start, *([f"quantizer.path={as_value(path)}"] if path else [])]
    if not bare:
        words += [f"bits={option}"] if (option := _bits(bits)) else [f"bits.{k}={as_value(v)}" for k, v in bits.items()]

    def base() -> Flat:
        return _composed(tuple(word for word in words if not word.startswith("bits")), tuple(bits.items()), bare)

    for group in ("model", "dataset", "sampler", *COMPONENTS):  # a model may bring a data set and a sampler
        known = any(key.startswith(f"{group}.") for key in wanted)
        if known and _kinds(wanted, group) != _kinds(base(), group) and (option := _nearest(group, wanted)) is not None:
            words.append(f"{group}={option}")
    made = base()
    if not own and (more := sorted(key for key in made if key not in wanted)):
        raise UserError(f"recipe {config['quantizer.name']} is no option here, and the nearest has {more[0]} beside it")
    changed = {key: value for key, value in wanted.items() if key not in made or made[key] != value}
    there = _keys(tuple(word for word in words if not word.startswith("bits"))) if changed else made
    words += [f"{'' if key in there else '+'}{key}={as_value(value)}" for key, value in changed.items()]
    metrics = _metrics(config)
    default = _metrics(_unbitten((*(() if own else start), *(word for word in words if word.startswith("model=")))))
    if metrics and set(metrics) != set(default):
        words.append(f"eval={_suite(metrics)}")
    return words


@cache
def _recipes() -> dict[str, Flat]:
    """What each option of `conf/quantizer` says of itself: its name, family and paper."""
    found = {}
    for file in sorted((CONF / "quantizer").glob("*.yaml")):
        given: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        found[file.stem] = given.get("quantizer") or {}
    return found


@cache
def _overlays() -> list[tuple[str, str, str | None]]:
    """The overlays of `conf/experiment` that name a recipe: their option, that name, and the quantizer they pick."""
    found = []
    for file in sorted((CONF / "experiment").rglob("*.yaml")):
        given: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        if name := (given.get("quantizer") or {}).get("name"):
            picks = [each for each in given.get("defaults") or [] if isinstance(each, dict)]
            picked = next((each["override /quantizer"] for each in picks if "override /quantizer" in each), None)
            found.append((file.relative_to(CONF / "experiment").with_suffix("").as_posix(), name, picked))
    return found


def _start(config: Flat, wanted: Flat, bits: tuple[tuple[str, Any], ...]) -> tuple[str, ...]:
    """The first words behind a recipe whose name is no option: of an overlay that gives it this name, or of its base.

    The base has the same family and paper, which an overlay leaves as they are. Of several ways the one that makes most
    of what was recorded.

    Raises:
        UserError: no recipe here has this family and paper.
    """
    name, starts, ways = config["quantizer.name"], [], []
    about = {key: config.get(f"quantizer.{key}") for key in ("family", "paper")}
    bases = [each for each, said in _recipes().items() if all(said.get(key) == about[key] for key in about)]
    bases = [each for each in bases if each not in NO_METHOD]
    for overlay, named, picked in _overlays():
        keys = _OPEN.findall(named)
        if _OPEN.sub(lambda found: str(config.get(found[1])), named) == name:
            values = [f"{key}={as_value(config[key])}" for key in keys if key in config]
            among = [()] if picked in bases else [(f"quantizer={base}",) for base in bases]
            starts += [(*base, f"experiment={overlay}", *values) for base in among]
    if name is not None:
        starts += [(f"quantizer={base}", f"quantizer.name={as_value(name)}") for base in bases]
    for start in starts:
        with suppress(UserError, HydraException, OmegaConfBaseException):
            made = _composed(start, bits, False)
            ways.append((sum(made.get(key, start) != wanted.get(key, start) for key in {*made, *wanted}), start))
    if not ways:
        raise UserError(f"recipe {name} is in no file of conf/, and like none there; --config-dir knows it")
    return min(ways, key=lambda way: way[0])[1]


def _suite(metrics: list[str]) -> str:
    """The option that has just these metrics, or a list of them; those that are no option are left out."""
    files = sorted((CONF / "eval").glob("*.yaml"))
    for file in files:
        given: Any = OmegaConf.load(file)
        if set(given.get("defaults") or []) == set(metrics):
            return file.stem
    return f"[{','.join(file.stem for file in files if file.stem in metrics)}]"


def _metrics(config: Any) -> list[str]:
    """The names of a config's metrics, by dotted keys or not."""
    if isinstance(config, dict):
        return list(dict.fromkeys(key.split(".")[1] for key in config if key.startswith("eval.")))
    return list(config.get("eval") or {})


def _bits(bits: Flat) -> str | None:
    """The option whose values bits have."""
    for file in sorted((CONF / "bits").glob("*.yaml")):
        given: Any = OmegaConf.to_container(OmegaConf.load(file))
        if all(given.get(key, "missing") == value for key, value in bits.items()):
            return file.stem
    return None


def _science(config: dict[str, Any], bare: bool) -> Flat:
    """What results depend on, as runs are told apart by it, by dotted keys; bare: without a recipe."""
    kept = without_neutral({key: config[key] for key in PROTOCOL_KEYS if key in config})
    whole = {key: {} for key in COMPONENTS} | config  # failed runs, and those of long ago, recorded less
    recipe = {} if bare else versioned({key: config[key] for key in COMPONENTS if key in config}, whole)
    recipe.pop("versions", None)  # follow from the rest
    found = flatten(kept | recipe)
    return {key: value for key, value in found.items() if key.split(".")[-1] != "reference"}


def _kinds(science: Flat, group: str) -> dict[str, Any]:
    """What says which option of a group a config has: names and classes."""
    return {k: v for k, v in science.items() if k.split(".")[0] == group and k.split(".")[-1] in ("name", "_target_")}


def _nearest(group: str, wanted: Flat) -> str | None:
    """The option of a group that agrees with a config in its class and in most of its other keys."""
    best, most = None, 0
    for file in sorted((CONF / group).glob("*.yaml")):
        given = flatten({group: OmegaConf.to_container(OmegaConf.load(file), resolve=False)})
        if given.get(f"{group}._target_") != wanted.get(f"{group}._target_"):
            continue
        score = sum(1 if wanted.get(key) == value else -1 for key, value in given.items()) + len(given)
        if score > most:
            best, most = file.stem, score
    return best


@cache
def _unbitten(words: tuple[str, ...]) -> Any:
    """A config that is not resolved yet, in which bits can be replaced."""
    quicken()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="qdit"):
        return compose("config", [as_text(word) for word in words])


@cache
def _keys(words: tuple[str, ...]) -> frozenset[str]:
    """The dotted keys of a config, those too that are left out of its science as long as they are neutral."""
    tree: Any = OmegaConf.to_container(_unbitten(words), resolve=False)
    return frozenset(flatten(tree))


@cache
def _composed(words: tuple[str, ...], bits: tuple[tuple[str, Any], ...], bare: bool) -> Flat:
    made = _unbitten(words).copy()
    if not bare:
        made.bits = OmegaConf.create({**made.bits, **dict(bits)})
    return _science(resolved(made), bare)
