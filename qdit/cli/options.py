"""The options of a config group as a table, from the comment at the head of each option. Imports no torch."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qdit.assets import CONF
from qdit.errors import UserError


@cache
def defaults() -> dict[str, str]:
    """The option that conf/config.yaml picks in each group; groups that it leaves open have none."""
    listed: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    entries = [item for each in listed["defaults"] if isinstance(each, dict) for item in each.items()]
    return {group: option for group, option in entries if isinstance(option, str) and " " not in group}


def head(file: Path) -> str:
    """The comment at the head of an option, as one line, without the commands, which stand behind wide spaces."""
    found: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text, *command = re.split(r" {3,}", line.removeprefix("#").removeprefix(" "))
        text = re.sub(":$", ".", text) if command else text.strip()
        if not text.startswith(("@package", "qdit ", "narrower: ")):
            found.append(text)
    return " ".join(filter(None, found))


def sentence(text: str) -> str:
    """The first sentence of a text.

    >>> sentence("Values, say 1.5, are scaled (arXiv 2211.10438). Then more.")
    'Values, say 1.5, are scaled (arXiv 2211.10438).'
    """
    return re.split(r"(?<=[.?]) (?=[A-Z])", text)[0].removesuffix(":").replace("|", "\\|")


def option_table(group: str) -> str:
    """A row for each option of a group, and of the groups inside it, as it is typed.

    Raises:
        UserError: no such group.
    """
    folder = CONF / group
    if not folder.is_dir():
        raise UserError(f"there is no config group {group!r}; there are {', '.join(groups())}")
    rows: dict[str, str] = {}
    brief: list[str] = []  # what its name says
    for where in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
        inner = where.relative_to(CONF).as_posix()
        files = sorted(where.glob("*.yaml"))
        if group == "experiment" and where != folder:  # a folder of overlays, not a group
            names = ", ".join(f"`{file.stem}`" for file in files)
            rows[f"`experiment={where.name}/ROW`"] = f"A row of `grid={where.name}`: {names}."
            continue
        for file in files:
            typed = f"`{inner}={file.stem}`" + (" (default)" if defaults().get(inner) == file.stem else "")
            if text := sentence(head(file)):
                rows[typed] = text
            else:
                brief.append(typed)
    rows |= {", ".join(brief): "as their names say"} if brief else {}
    return "\n".join(["| override | what it is |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows.items())]) + "\n"


def groups() -> list[str]:
    """The config groups, but for Hydra's and this machine's."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "local"))
