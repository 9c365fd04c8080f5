"""The design table: a row per recipe, a column per component group, read from the configs. Imports no torch.

    qdit-design                                         print it, as Markdown
    qdit-design --config-dir mine                       with the recipes of a folder of one's own
    qdit-design --write docs/methods.md docs/components.md    write what stands between the markers of documents

A cell is what a recipe picks, and · where that is the default of conf/config.yaml. Documents have markers, lines such
as `<!-- qdit-design: recipes -->` and `<!-- qdit-design: options of weight -->`, each closed by
`<!-- /qdit-design -->`.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qdit.assets import CONF
from qdit.cli.documents import filled
from qdit.cli.entry import carried_out
from qdit.cli.options import defaults, head, option_table
from qdit.cli.quick_hydra import quicken
from qdit.errors import UserError
from qdit.keys import COMPONENTS, flatten
from qdit.storage.atomic import atomic_write
from qdit.tables import families

NO_METHOD = ("fp", "load", "external")  # full precision, whatever a checkpoint holds, and what others did

LEGEND = """Behind an option stand the choices inside it, and the grid, that a recipe changes; * says that it changes
other values too: `qdit quantizer=NAME --cfg job` shows all. Bits such as W4A4 are of linear layers: without
`attention` the products of queries, keys and values stay in full precision."""


class Row(NamedTuple):
    """A row: what the table says of one option of `quantizer`."""

    name: str
    title: str
    paper: str | None
    family: str | None
    cells: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Print or write the table; 0, or 2 after a mistake that the user can mend."""
    parser = argparse.ArgumentParser("qdit-design", description="How the recipes differ, from their configs.")
    parser.add_argument("--config-dir", type=Path, help="a folder like conf/, with recipes of your own")
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="FILE", help="between a file's markers")
    options = parser.parse_args(argv)
    return carried_out("qdit-design", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    for path in options.write:
        atomic_write(path, updated(path, options.config_dir))
    if not options.write:
        print(table(options.config_dir), end="")


def updated(path: Path, config_dir: Path | None = None) -> str:
    """The text of a document with what belongs between its markers.

    Raises:
        UserError: it cannot be read, has no markers, or has one that says nothing known.
    """

    def made(what: str) -> str:
        return table(config_dir) if what == "recipes" else option_table(what.removeprefix("options of "))

    return filled(path, "qdit-design", made, "recipes")


def table(config_dir: Path | None = None) -> str:
    """The table in Markdown, with the sentence that explains it. Raises as `listed` does."""
    return rendered(listed(config_dir))


def listed(config_dir: Path | None = None) -> list[Row]:
    """The table's rows: every recipe, with what it picks in each of `qdit.keys.COMPONENTS`.

    Raises:
        UserError: `config_dir` is no folder, or holds a recipe that does not compose.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir {config_dir} is no folder; one with quantizer/NAME.yaml is needed")
    quicken()
    folders = (CONF, *([config_dir.resolve()] if config_dir else []))
    search = create_config_search_path(str(CONF))
    for folder in folders[1:]:
        search.prepend("own", f"file://{folder}", "schema")  # whose place is the last
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        GlobalHydra.instance().clear()
        Hydra.create_main_hydra2("qdit-design", search)  # hydra.searchpath does not serve options by themselves
        return recipes(folders)


def recipes(folders: tuple[Path, ...]) -> list[Row]:
    """What there is to say of each recipe, by family, then as published.

    Raises:
        UserError: a recipe does not compose.
    """
    found = []
    for file in sorted(file for folder in folders for file in (folder / "quantizer").glob("*.yaml")):
        if file.stem in NO_METHOD:
            continue
        try:
            config = compose("config", [f"quantizer={file.stem}"], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise UserError(f"{file} does not compose ({' '.join(str(error).splitlines()[:2])}); mend it") from error
        about: Any = OmegaConf.to_container(config["quantizer"], resolve=False)
        cells = [cell(config, group, folders) for group in COMPONENTS]
        found.append(Row(file.stem, title(file), about.get("paper"), about.get("family"), cells))
    return sorted(found, key=lambda row: (families.rank(row.family), row.paper or "", row.name))


def title(file: Path) -> str:
    """A method's name, from the comment at the head of its recipe."""
    return re.split(r",? \(?arXiv|: | as | on |\. ", head(file))[0].rstrip(".,") or file.stem


def inside(config: DictConfig, group: str) -> dict[str, str]:
    """The choices inside a group's option, by Hydra's name of them: `weight/range`, `transform/statistic@PACKAGE`."""
    choices = config.hydra.runtime.choices
    return {key: str(choices[key]) for key in choices if key.startswith((f"{group}/", f"{group}@"))}


def values(config: DictConfig, group: str) -> dict[str, Any]:
    """The values of a group's option, by dotted key."""
    node: Any = OmegaConf.to_container(config[group.partition("/")[0]], resolve=False)
    for part in group.split("/")[1:]:
        node = node[part]
    return flatten(node)


@cache
def alone(group: str, option: str, folders: tuple[Path, ...]) -> tuple[dict[str, str], dict[str, Any]]:
    """The choices inside an option of one of the folders, and its values, as it comes."""
    texts = [file.read_text("utf-8") for folder in folders if (file := folder / group / f"{option}.yaml").is_file()]
    if texts and not re.search(r"^defaults:|@package", texts[0], re.MULTILINE):  # is what it says
        return {}, flatten(cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.create(texts[0]))))
    config = compose(f"{group}/{option}", return_hydra_config=True)
    return inside(config, group), values(config, group)


def cell(config: DictConfig, group: str, folders: tuple[Path, ...]) -> str:
    """What a composed recipe picks in a group: · where it is the default, as it comes."""
    option = str(config.hydra.runtime.choices[group])
    usual, own = alone(group, option, folders)
    changed: dict[str, str] = {}
    for key, value in sorted(inside(config, group).items()):  # a choice before those inside it
        if usual.get(key) != value:
            changed[key] = value
            where, (further, new) = node_of(key, group), alone(key.partition("@")[0], value, folders)
            usual = usual | further
            own = {name: kept for name, kept in own.items() if not name.startswith(f"{where}.")}
            own |= {f"{where}.{name}": kept for name, kept in new.items()}
    moved = {name for name, value in values(config, group).items() if own.get(name) != value}
    said = [option, *(f"{value}{noun(key)}" for key, value in changed.items())]
    if "grid" in moved:
        said.append(str(config[group]["grid"]))
    text = ", ".join(said) + ("*" if moved - {"grid"} else "")
    return "·" if text == defaults()[group] else text


def noun(key: str) -> str:
    """What stands behind the name of an option inside another: nothing where the name says enough."""
    word = key.partition("@")[0].rpartition("/")[2]
    return {"time": " times", "regions": " regions", "statistic": " statistic"}.get(word, "")


def node_of(key: str, group: str) -> str:
    """Where the values of a choice inside a group's option are, below the group."""
    where, _, package = key.partition("@")
    return (package or where.replace("/", ".")).removeprefix(f"{group}.")


def rendered(rows: list[Row]) -> str:
    """The table and its legend."""
    columns = ["recipe", "method", *COMPONENTS]
    lines = [line(columns), "|" + "---|" * len(columns)]
    for family in dict.fromkeys(families.title(row.family) for row in rows):
        lines.append(line([f"**{family}**", *[""] * (len(columns) - 1)]))
        members = [row for row in rows if families.title(row.family) == family]
        lines += [line([f"`{row.name}`", method(row), *row.cells]) for row in members]
    default = " ".join(f"{group}={defaults()[group]}" for group in COMPONENTS)
    lines += ["", f"· is the default: `{default}`.", LEGEND]
    return "\n".join(lines) + "\n"


def line(cells: list[str]) -> str:
    """A row of Markdown."""
    return "| " + " | ".join(cells) + " |"


def method(row: Row) -> str:
    """A method's name and its paper."""
    if row.paper is None:
        return row.title
    number = row.paper.removeprefix("arXiv ")
    return f"{row.title}, [{number}](https://arxiv.org/abs/{number})"


if __name__ == "__main__":
    sys.exit(main())
