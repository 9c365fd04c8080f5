"""Configs in Python: `conf/` composed in the words of the command line, by Hydra, as the command line does."""

import re
from difflib import get_close_matches
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from qdit.assets import CONF
from qdit.cli.design import NO_METHOD, listed
from qdit.cli.mistyped import explain
from qdit.cli.quick_hydra import quicken
from qdit.cli.words import as_text
from qdit.config import check, resolved
from qdit.errors import UserError
from qdit.keys import COMPONENTS, RECIPE_KEYS
from qdit.method import Method
from qdit.runs.parts import build_recipe

_COMMANDS = re.compile(r"[+~]*(grid|hydra)(@[^=]*)?=|[+~]*hydra[./]")
"""Words that a command reads before it composes a run: a sweep, and Hydra's own settings."""

_READ = ("quantizer", "experiment", "sampler", "inception_weights", "allow_download")
_OF_RECIPE = re.compile(rf"[+~]*({'|'.join((*RECIPE_KEYS, *_READ))})\b")
"""Words that say what a recipe is: its parts, and what some parts read, such as the steps of the sampler."""


def composed(*words: str) -> DictConfig:
    """The config of a run.

    Args:
        words: as on the command line, such as `"weight.group_size=64"`.

    Raises:
        UserError: a word has no place in the config, names an option that is not there, or is for the command itself.
    """
    if wrong := [word for word in words if not isinstance(word, str) or "=" not in word.lstrip("~")[:-1] + " "]:
        raise UserError(f"{wrong[0]!r} is no word of the command line, which are such as 'weight.group_size=64'")
    if ours := [word for word in words if _COMMANDS.match(word)]:
        raise UserError(
            f"{ours[0]!r} says how the command line runs, not what: here one run is composed, and it would do nothing. "
            f"Give it to the command, as in `qdit {ours[0].lstrip('+~')}`"
        )
    quicken()
    explain()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="qdit"):
            return compose("config", [as_text(word) for word in words])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(f"{error}".split())) from error


def composed_recipe(name: str, words: tuple[str, ...], bits: str) -> tuple[Method, dict[str, Any]]:
    """A recipe, and the part of the config that describes it.

    Raises:
        UserError: see `recipe`.
    """
    known = sorted(file.stem for file in (CONF / "quantizer").glob("*.yaml"))
    if name in NO_METHOD:
        advice = {"fp": "leave the model as it is", "load": "use qdit.load(folder, model)"}
        raise UserError(f"{name} is no recipe that quantizes: {advice.get(name, 'use qdit.judge(pipe, full)')}")
    if name not in known:
        near = get_close_matches(str(name), known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no recipe {name!r}; {hint}There are {', '.join(sorted({*known} - {*NO_METHOD}))}")
    if not isinstance(bits, str):
        raise UserError(f"bits={bits!r} is no name; name the bits of weights and inputs, as 'w4a8' does")
    if idle := [word for word in words if not _OF_RECIPE.match(str(word))]:
        raise UserError(
            f"{idle[0]!r} is no part of a recipe, and would do nothing here; what is one: {', '.join(RECIPE_KEYS)}. "
            "qdit.run takes all words"
        )
    config = resolved(composed(f"quantizer={name}", f"bits={bits}", *words))
    check(config)
    if (made := build_recipe(config)) is None:
        raise UserError(f"the scope of {name} with {' '.join(words)} selects nothing: this is full precision")
    return made, {key: config[key] for key in (*RECIPE_KEYS, "quantizer", "name")}


def recipe(name: str, *overrides: str, bits: str = "w4a8") -> Method:
    """A recipe, with its search and correction if it has any, composed from `conf/` and built.

    Args:
        name: of the recipe; `qdit --help` lists them.
        overrides: the command line's words, such as `"rounding=nearest"` or `"weight.group_size=64"`.
        bits: of weights and inputs, an option of `conf/bits`.

    Raises:
        UserError: there is no such recipe, or it refuses its values.

    >>> import qdit
    >>> method = qdit.recipe("q_dit", "weight.group_size=64", bits="w4a4")
    >>> method.weight.group_size, method.weight_bits, type(method.rounding).__name__
    (64, 4, 'GPTQ')
    """
    return composed_recipe(name, overrides, bits)[0]


def design() -> pd.DataFrame:
    """How the recipes differ: a row a recipe, as in docs/methods.md.

    Columns: `title`, `family`, `paper`; then a component group each, with what the recipe picks in it, · where that is
    the default.

    >>> import qdit
    >>> qdit.design().loc["q_dit", ["paper", "weight", "rounding"]].tolist()
    ['arXiv 2406.17343', 'group', 'gptq']
    """
    recipes = listed()
    about = pd.DataFrame(
        [(each.title, each.family, each.paper) for each in recipes], columns=["title", "family", "paper"]
    )
    cells = pd.DataFrame([each.cells for each in recipes], columns=list(COMPONENTS))
    return pd.concat([about, cells], axis=1).set_index(pd.Index([each.name for each in recipes], name="recipe"))
