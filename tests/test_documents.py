"""Modules, classes and files that documents, configs, notebooks and docstrings name are there: what moves is found."""

import json
import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
WRITTEN = [
    "*.md",
    "docs/**/*.md",
    "experiments/*/*.md",
    "notebooks/*.ipynb",
    "examples/*.py",
    "conf/**/*.yaml",
    "qdit/**/*.md",
    "qdit/**/*.py",
]
DOCUMENTS = sorted(file for pattern in WRITTEN for file in ROOT.glob(pattern))
FOLDERS = ("qdit", "conf", "docs", "experiments", "notebooks", "tests")
DOTTED = re.compile(r"(?<![\w./-])qdit(?:\.[A-Za-z_]\w*)+")
IMPORTED = re.compile(r"^\s*from (qdit[\w.]*) import ([\w, ]+|\([\w,\s]+\))", re.MULTILINE)
FILE = re.compile(rf"(?<![\w./<-])(?:\.\./)*((?:{'|'.join(FOLDERS)})/[\w./*-]*\w)")


def text_of(file: Path) -> str:
    """A document's text; of a notebook its cells, without what they printed."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or what is found in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def names(text: str, quoted: bool = False) -> set[str]:
    """The dotted names of qdit in a text, and those that it imports; of code only what is `quoted`, in docstrings."""
    if quoted:
        return {name for part in re.findall(r"`[^`\n]+`", text) for name in DOTTED.findall(part)}
    imported = {
        f"{module}.{name}" for module, several in IMPORTED.findall(text) for name in re.findall(r"\w+", several)
    }
    return set(DOTTED.findall(text)) | imported


def test_names_and_files_that_are_mentioned_are_there():
    missing = []
    for file in DOCUMENTS:
        text, where = text_of(file), file.relative_to(ROOT)
        missing += [f"{where}: {name}" for name in names(text, file.suffix == ".py") if not is_there(name)]
        missing += [f"{where}: {path}" for path in set(FILE.findall(text)) if not any(ROOT.glob(path))]
    assert missing == []


def test_what_is_not_there_is_found():
    text = "`qdit.layers.QuantLinear`, ../qdit/transform/draft.py; from qdit.nn.clock import Watch, Clock\n"
    assert [name for name in sorted(names(text)) if not is_there(name)] == ["qdit.layers.QuantLinear"]
    assert FILE.findall(text) == ["qdit/transform/draft.py"]
    assert not is_there("qdit.nn.clock.Watch")
    assert {"qdit.nn.clock.Watch", "qdit.nn.clock.Clock"} <= names("from qdit.nn.clock import Watch, Clock")
    assert names('"qdit.layers", `qdit.nn`', quoted=True) == {"qdit.nn"}
