"""What a fresh installation must do: import every module, make a run, print its table. Writes in the working folder.

A script of its own, for interpreters without pytest (`make newest`); `test_dependencies.py` runs it, too.
"""

import importlib
import pkgutil
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import qdit

HEAVY = ("wandb", "timm", "torch_fidelity", "IPython", "sklearn", "hypothesis", "pytest")
"""What a run with paired metrics and no logger does not use, and therefore must not import.

Not here: transformers, which diffusers itself imports where it is installed (`qdit[text]`).
"""
RUN = ("quantizer=rtn", "eval=paired", "num_samples=2", "batch_size=2", "sampler.steps=2", "device=cpu")


def imported() -> list[str]:
    """Names of `HEAVY` that are imported."""
    return [name for name in HEAVY if sys.modules.get(name) is not None]


def call(main: Callable[[], object], *arguments: str) -> None:
    """Run a command in this process."""
    sys.argv = [sys.argv[0], *arguments]
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    assert not code or isinstance(code, float), f"{arguments} ended with code {code}"


def check() -> None:
    """Raise unless everything holds."""
    from qdit.cli.main import main

    call(main, *RUN)
    assert not imported(), f"imported by a run that does not use them: {imported()}"
    assert list(Path("runs/default").glob("rtn-*/result.json")), "the run left no record"
    for module in pkgutil.walk_packages(qdit.__path__, "qdit."):
        importlib.import_module(module.name)
    assert not imported(), f"imported by importing qdit's modules: {imported()}"
    from qdit.cli import table
    from qdit.eval.extractor.lite0 import make_network

    call(table.main, "--study", "default")
    make_network()
    assert "wandb" not in imported(), "timm brought wandb along"


if __name__ == "__main__":
    check()
    found = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "diffusers", "jaxtyping", "pandas"))
    print(f"Python {platform.python_version()} with {found}: imports, a run and a table are well")
