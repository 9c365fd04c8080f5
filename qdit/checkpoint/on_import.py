"""Tells diffusers and peft of qdit as soon as they are there, and not before: importing qdit stays light.

diffusers has no function that registers a quantizer: it looks names up in two mappings of `diffusers.quantizers.auto`.
Where that module is loaded already, the names are entered at once; else when it is imported, by whomever. What is
entered stands for the classes of `qdit.checkpoint.diffusers`, which are imported with the first folder that needs them.

peft looks the class that puts LoRA into a network up in a mapping, too; there qdit's stands, which is peft's own for
all networks but those that qdit quantized (`qdit.checkpoint.lora`).

With either of them `qdit.compat` is imported, before anything of it needs torchvision.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

LIBRARIES = ("diffusers", "peft")
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


def enter(auto: ModuleType) -> None:
    """Enter the method in both mappings of diffusers."""
    auto.AUTO_QUANTIZER_MAPPING[METHOD] = Later("QditQuantizer")
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = Later("QditConfig")


def enter_lora(_: ModuleType) -> None:
    """Enter the class for LoRA in the mapping of peft."""
    kind = import_module("peft.utils.peft_types").PeftType.LORA
    import_module("peft.mapping").PEFT_TYPE_TO_TUNER_MAPPING[kind] = import_module("qdit.checkpoint.lora").tuner()


WATCHED: dict[str, Callable[[ModuleType], None]] = {"diffusers.quantizers.auto": enter, "peft.tuners.lora": enter_lora}
"""What is done with a module once it is imported."""


class AtImport(MetaPathFinder):
    """Finds the watched modules as everybody else does, and adds what is to be done with them."""

    def __init__(self) -> None:
        self.left = dict(WATCHED)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """None for all modules but the watched ones, whose specs do it when they are executed."""
        if fullname in LIBRARIES:
            import_module("qdit.compat")
        if (then := self.left.pop(fullname, None)) is None:
            return None
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def and_then(module: ModuleType) -> None:
                execute(module)
                then(module)

            spec.loader.exec_module = and_then
        return spec


def watch() -> None:
    """Do it now for what is imported already, and for the rest when it is."""
    if any(library in sys.modules for library in LIBRARIES):
        import_module("qdit.compat")
    finder = next((each for each in sys.meta_path if isinstance(each, AtImport)), None) or AtImport()
    for name, then in WATCHED.items():
        if name in sys.modules:
            finder.left.pop(name, None)
            then(sys.modules[name])
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)
