"""Imports of qdit go one way: a file imports from its own line of `LAYERS` and from those above, without circles."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

QDIT = Path(__file__).parents[1] / "qdit"
LAYERS = """
errors checked seeding compat environment keys
storage config quant execution assets
nn policies eval tables tracking
model plots
dataset sampler scope ledger
calibration setting
activation weight
attention
scheme
transform
fit quantized
rounding hessian correction checkpoint repair
recipes
fitting
search
method
exports
engine
runs
report
cli api
"""
LEVEL = {room: level for level, line in enumerate(LAYERS.split("\n")) for room in line.split()}
MOST_FLAT = 18


def module(file: Path) -> str:
    return ".".join(file.relative_to(QDIT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(file): file for file in QDIT.rglob("*.py")}


def imports(name: str) -> list[tuple[str, int]]:
    """The modules of qdit that a module imports anywhere, also for type checkers and inside functions, with lines."""
    found = []
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{MODULES[name]}:{node.lineno} imports relatively"
            whole = [(f"{node.module}.{each.name}", node.module) for each in node.names]
            found += [(inner if inner in MODULES else str(outer), node.lineno) for inner, outer in whole]
        elif isinstance(node, ast.Import):
            found += [(each.name, node.lineno) for each in node.names]
    return [(to, line) for to, line in found if to in MODULES and "qdit" not in (to, name)]  # __init__ is the API's


@cache
def edges() -> list[tuple[str, str, int]]:
    """Who imports whom, and in which line."""
    return [(name, to, line) for name in MODULES for to, line in imports(name)]


def room(name: str) -> str:
    """The folder or flat file in qdit/ that a module is, or is in."""
    return name.split(".")[1]


def test_imports_follow_the_layers():
    assert {room(name) for name in MODULES if name != "qdit"} <= LEVEL.keys(), "give a new room its place in LAYERS"
    against = [(name, to, line) for name, to, line in edges() if LEVEL[room(to)] > LEVEL[room(name)]]
    assert not against, "\n".join(f"{MODULES[name]}:{line} imports {to}" for name, to, line in against)


def test_no_circles_between_files_or_rooms():
    for short in (str, room):
        graph: dict[str, set[str]] = {}
        for name, to, _ in edges():
            if short(name) != short(to):
                graph.setdefault(short(name), set()).add(short(to))
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1]
            places = [f"{MODULES[n]}:{line}" for n, to, line in edges() if {short(n), short(to)} <= set(circle)]
            raise AssertionError(f"{' <- '.join(circle)}: {', '.join(places)}") from None


def test_few_flat_files():
    flat = sorted(file.stem for file in QDIT.glob("*.py") if file.stem != "__init__")
    assert len(flat) <= MOST_FLAT, f"{len(flat)} flat files: {flat}; a folder has room for one of them"
