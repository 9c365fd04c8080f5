"""Composed configs. Hydra takes a tenth of a second for a composition, so each one is made once a process."""

from copy import deepcopy
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from qdit.assets import CONF
from qdit.cli.quick_hydra import quicken
from qdit.config import resolved


@cache
def _composed(words: tuple[str, ...]) -> DictConfig:
    quicken()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(words))


def is_choice(word: str) -> bool:
    """Whether a word of the command line chooses an option of a group, and does not only set a value."""
    return (CONF / word.lstrip("+~").partition("=")[0].partition("@")[0]).is_dir()


def composed(*words: str) -> DictConfig:
    """What a command line gives, one's own to change: options are composed, and values set afterwards, as by Hydra."""
    config = deepcopy(_composed(tuple(word for word in words if is_choice(word))))
    values = OverridesParser.create().parse_overrides([word for word in words if not is_choice(word)])
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


def config(*words: str) -> dict[str, Any]:
    """What a command line gives, resolved."""
    return resolved(composed(*words))
