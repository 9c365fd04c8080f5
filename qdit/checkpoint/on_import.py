"""Tells diffusers of the method `qdit` as soon as diffusers is there, and not before: importing qdit stays light.

diffusers has no function that registers a quantizer: it looks names up in two mappings of `diffusers.quantizers.auto`.
Where that module is loaded already, the names are entered at once; else when it is imported, by whomever. What is
entered stands for the classes of `qdit.checkpoint.diffusers`, which are imported with the first folder that needs them.

With diffusers `qdit.compat` is imported, too, before anything of it needs torchvision.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

LIBRARY, WATCHED = "diffusers", "diffusers.quantizers.auto"
METHOD = "qdit"


class Later:
    """A class of `qdit.checkpoint.diffusers` that is imported when it is called.

    Args:
        name: of the class.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """An object of the class."""
        return getattr(import_module("qdit.checkpoint.diffusers"), self.name)(*args, **kwargs)

    def from_dict(self, content: dict[str, Any]) -> Any:
        """An object of the class, of the values of a `config.json`."""
        return self(**content)


class AtImport(MetaPathFinder):
    """Finds the two watched modules as everybody else does, and adds what is to be done with them."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """None for all modules but `diffusers.quantizers.auto`, whose spec enters the names when it is executed."""
        if fullname == LIBRARY:
            import_module("qdit.compat")
        if fullname != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then_enter(module: ModuleType) -> None:
                execute(module)
                enter(module)

            spec.loader.exec_module = then_enter
        return spec


def enter(auto: ModuleType) -> None:
    """Enter the method in both mappings."""
    auto.AUTO_QUANTIZER_MAPPING[METHOD] = Later("QditQuantizer")
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = Later("QditConfig")


def watch() -> None:
    """Enter the method now, or when diffusers is imported."""
    if WATCHED in sys.modules:
        return enter(sys.modules[WATCHED])
    if LIBRARY in sys.modules:
        import_module("qdit.compat")
    if not any(isinstance(finder, AtImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, AtImport())
