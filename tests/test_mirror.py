"""Tests mirror qdit/: `qdit/a/b.py` has its tests in `tests/a/test_b.py`, a large module in several `test_b_*.py`."""

from pathlib import Path

TESTS = Path(__file__).parent
QDIT = TESTS.parent / "qdit"
WHOLE = {"addresses", "conf", "conf_eval", "dependencies", "grid_methods", "hostile_files", "layers", "mirror"}
WHOLE |= {
    "devices",
    "recipes_embedded",
    "documents",
    "examples",
    "notebooks",
    "readme",
    "shipped",
    "site",
    "text_models",
}
"""Tests of the whole program, or of experiments/, which stand at the top."""


def modules(folder: Path) -> set[str]:
    """Names of the modules and packages in a folder of qdit/."""
    return {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.glob("*/")}


def test_each_test_file_has_the_name_of_what_it_tests():
    nameless = []
    for file in TESTS.rglob("test_*.py"):
        folder, name = file.parent.relative_to(TESTS), file.stem.removeprefix("test_")
        if folder == Path() and name in WHOLE:
            continue
        if not any(name == module or name.startswith(f"{module}_") for module in modules(QDIT / folder)):
            nameless.append(str(file.relative_to(TESTS)))
    assert nameless == [], "name them after a module of the folder in qdit/ that they mirror"
