"""Groups, options and keys that are not there: one message that names what was found, the nearest names, what to try.

Hydra finds the mistake, in the command line and in Python; here its message is replaced, and, on the command line, what
it prints around it. HYDRA_FULL_ERROR=1 leaves all to Hydra. Imports no torch.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from typing import Any

from hydra._internal import utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from qdit.assets import CONF
from qdit.cli import plugins
from qdit.cli.entry import CLOSED, hushed
from qdit.errors import did_you_mean
from qdit.keys import flatten

_KEY = re.compile(r"Could not (?:override|delete) '([^']+)'|config group '([^']+)' does not exist")
MOST = 40  # names that a message lists


class Mistyped(ConfigCompositionException):
    """A mistake in the words of a command line, which its message tells in full."""


@cache
def explain() -> None:
    """From now on Hydra tells of names that are not there in qdit's words, and ends with code 2."""
    loader: Any = ConfigLoaderImpl
    loader.load_configuration = explained(loader.load_configuration)
    utils.run_and_report = told(utils.run_and_report)


def explained(load: Callable[..., Any]) -> Callable[..., Any]:
    """Loads a config; what Hydra says of a name that is not there is said better.

    A sweep over options, such as of `quantizer`, is loaded without its values that the default option has no key for:
    Hydra composes the sweep once without what it sweeps, before it composes the cells, each with all of its words.
    """

    @wraps(load)
    def load_configuration(
        self: Any, config_name: str | None, overrides: list[str], run_mode: RunMode, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            return load(self, config_name, overrides, run_mode, *args, **kwargs)
        except ConfigCompositionException as error:
            if config_name is None:
                raise
            if run_mode == RunMode.MULTIRUN and (word := _of_a_swept_option(error, self, overrides)):
                rest = [each for each in overrides if each != word]
                config = load_configuration(self, config_name, rest, run_mode, *args, **kwargs)
                task = [*config.hydra.overrides.task, word]
                with flag_override(config, "readonly", False):
                    config.hydra.overrides.task = [each for each in overrides if each in task]
                return config
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            message = _message(error, self, config_name, overrides, load)
            if message is None:
                raise
            raise Mistyped(message) from None

    return load_configuration


def _of_a_swept_option(error: ConfigCompositionException, loader: Any, words: Sequence[str]) -> str | None:
    """The word that Hydra cannot place, if what is swept beside it are options, one of which may have its key."""
    match, groups = _KEY.search(str(error)), _groups(loader)
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(words))
    if match is None or not any(each.is_sweep_override() and each.key_or_group in groups for each in parsed):
        return None
    meant = [each.input_line for each in parsed if each.key_or_group == match[1] and not each.is_sweep_override()]
    return meant[0] if meant else None


def told(run_and_report: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a command; a mistyped name is its message alone, and code 2; a reader that has gone is no error of ours."""

    @wraps(run_and_report)
    def run(func: Callable[[], Any]) -> Any:
        def work() -> Any:
            try:
                return func()
            except Mistyped as error:
                print(error, file=sys.stderr)
                raise SystemExit(2) from None
            except BrokenPipeError:
                if not hushed():
                    raise
                raise SystemExit(CLOSED) from None

        return run_and_report(work)

    return run


def unknown_options(loader: ConfigLoader, words: Iterable[str]) -> list[str]:
    """What is wrong with the options that words name, without composing them: of a sweep, before its first cell."""
    groups, found = _groups(loader), []
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(dict.fromkeys(words))):
        value = override.value() if not override.is_sweep_override() else None
        if override.is_delete() or override.key_or_group not in groups or value is None:
            continue
        for option in value if isinstance(value, list) else [value]:
            if not isinstance(option, str) or "${" in option:  # known when the cell is composed
                continue
            group, _, name = f"{override.key_or_group}/{option}".removesuffix(".yaml").rpartition("/")
            if name not in loader.get_group_options(group):
                found.append(_no_option(loader, f"{group}/{name}"))
    return list(dict.fromkeys(found))


def _message(
    error: ConfigCompositionException, loader: Any, config_name: str, words: Sequence[str], load: Callable[..., Any]
) -> str | None:
    """What to say of Hydra's error; None where it is not about a name."""
    if isinstance(error, MissingConfigException):
        missing = error.missing_cfg_file or ""
        if missing.startswith("hydra/"):
            return plugins.no_option(missing, loader.get_group_options(missing.rpartition("/")[0]))
        return _no_option(loader, missing) if "/" in missing else None
    match = _KEY.search(str(error))
    if match is None:
        return None
    key = match[1] or match[2]
    word = next((word for word in words if word.lstrip("+~").partition("=")[0].partition("@")[0] == key), key)
    if told := plugins.no_key(word, key):
        return told
    return _no_key(loader, key, word, _known(loader, config_name, [each for each in words if each != word], load))


def _no_option(loader: Any, path: str) -> str:
    """`quantizer/qdti`: the group has no such option, or is itself none."""
    groups = _groups(loader)
    group, _, option = path.rpartition("/")
    while group not in groups and "/" in group:
        group, _, outer = group.rpartition("/")
        option = f"{outer}/{option}"
    options = loader.get_group_options(group)
    inner = [
        f"{each}/{name}" for each in loader.list_groups(group) for name in loader.get_group_options(f"{group}/{each}")
    ]
    hint = did_you_mean(option, [*options, *(inner if "/" in option else [])])
    return (
        f"{group}={option}: there is no such option{hint}; {group} has {_listed(options)}. "
        f"For an option of your own name its folder: --config-dir FOLDER, with FOLDER/{group}/{option}.yaml in it"
    )


def _no_key(loader: Any, key: str, word: str, known: dict[str, Any]) -> str:
    """A key that the config does not have, or a group."""
    groups = _groups(loader)
    if key in groups:
        return (
            f"{word}: this config has no {key} to replace; +{word.lstrip('+~')} adds it, where what it picks uses one"
        )
    names = {*known, *(groups if "." not in key else [])}
    last = sorted(name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2])
    hint = f" (did you mean {', '.join(last[:3])}?)" if last else did_you_mean(key, names)
    if having := _options_with(key):
        return f"{word}: what this config picks has no key {key}{hint}; these have: {_listed(having)}"
    group = re.split("[./]", key)[0]
    inside = [name.partition(".")[2] for name in known if name.startswith(f"{group}.") and name.count(".") == 1]
    there = f"; {group} has {_listed([name for name in inside if name[0] != '_'])}" if inside else ""
    return (
        f"{word}: there is no key {key}{hint}{there}. `qdit --help` lists the groups, `qdit --cfg job` the keys; "
        "a + before it adds one that no file has"
    )


def _known(loader: Any, config_name: str, words: list[str], load: Callable[..., Any]) -> dict[str, Any]:
    """The keys of the config without the wrong word, dotted, mappings too; those of the default where that has more."""
    for rest in (words, []):
        try:
            config = load(loader, config_name, rest, RunMode.RUN)
        except (HydraException, OmegaConfBaseException):
            continue
        tree: Any = OmegaConf.to_container(config, resolve=False)
        tree.pop("hydra", None)
        flat = flatten(tree)
        within = {name.rsplit(".", depth)[0]: None for name in flat for depth in range(1, name.count(".") + 1)}
        return within | flat
    return {}


def _groups(loader: Any) -> list[str]:
    """The groups of the config and those inside them, but for Hydra's own."""
    found: list[str] = []
    pending = [name for name in loader.list_groups("") if name != "hydra"]
    while pending:
        found.append(name := pending.pop(0))
        pending += [f"{name}/{each}" for each in loader.get_group_options(name, ObjectType.GROUP)]
    return found


def _options_with(key: str) -> list[str]:
    """The options of a group that have a key which another option of it has not: `transform=smooth` for alpha."""
    group, _, inner = key.partition(".")
    having = []
    for file in sorted((CONF / group).glob("*.yaml")) if inner else []:
        given: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        if isinstance(given, dict) and inner in flatten(given):
            having.append(f"{group}={file.stem}")
    return having


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return (", ".join(names[:MOST]) or "none") + more
