"""Where a command finds and leaves files: the words of a command line for folders that are not the default ones.

What is no science is in no run id, and so not in the command that `qdit.cli.recall` finds; without it the command would
look for the run elsewhere, or not find a metric's weights. Imports no torch.
"""

import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qdit.assets import CONF
from qdit.cli.words import as_value
from qdit.keys import flatten
from qdit.runs.identity import FINDING


def placed(command: str, config: Mapping[str, Any], runs_dir: Path) -> str:
    """A command line with the words that let it find what its run has.

    Args:
        command: of `qdit.cli.recall`.
        config: of the run's record, by dotted keys.
        runs_dir: the folder of studies in which the run lies now, whatever was recorded.

    >>> placed("qdit quantizer=rtn", {"cache_dir": "cache"}, Path("elsewhere"))
    'qdit quantizer=rtn runs_dir=elsewhere'
    """
    default = _top()
    found: dict[str, Any] = {} if runs_dir == Path(default["runs_dir"]) else {"runs_dir": str(runs_dir)}
    cache_dir = config.get("cache_dir", default["cache_dir"])
    if cache_dir != default["cache_dir"] and Path(cache_dir).is_dir():  # else a run of another machine, or folder
        found["cache_dir"] = cache_dir
    for key in ("inception_weights", "allow_download"):
        if config.get(key) not in (None, default[key]):
            found[key] = config[key]
    for key, value in config.items():
        group, *inner = key.split(".")
        if group == "eval" and len(inner) > 1 and inner[1] in FINDING and _is_own(inner, value):
            found[key] = value
    return " ".join([command, *(shlex.quote(f"{key}={as_value(value)}") for key, value in found.items())])


@cache
def _top() -> dict[str, Any]:
    made: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"), resolve=False)
    return made


def _is_own(key: list[str], value: Any) -> bool:
    """Whether a metric's key has a value of one's own, not that of its option, which may follow from another key."""
    file = CONF / "eval" / f"{key[0]}.yaml"
    if not file.is_file():
        return False
    given: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    option = flatten(given).get(".".join(key))
    return value is not None and value != option and "${" not in str(option)
