"""qdit: post-training quantization of diffusion transformers, as recipes of interchangeable parts.

In a notebook:

    import qdit
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained("facebook/DiT-XL-2-256")
    data = qdit.calibrate(pipe, num_samples=64)
    qdit.quantize(pipe.transformer, "svdquant", "transform.steps.lowrank.rank=32", bits="w4a4", data=data)
    pipe.save_pretrained("mine")        # later: import qdit; DiTPipeline.from_pretrained("mine")

Everything below is loaded when it is first used: importing qdit takes no torch. What it does at once is to tell
diffusers who reads the folders that qdit saves (`qdit.checkpoint.on_import`).
"""

from typing import TYPE_CHECKING, Any

from qdit.checkpoint import on_import

if TYPE_CHECKING:
    from qdit.api import (
        calibrate,
        cost,
        dequantize,
        design,
        difference,
        embedded,
        export,
        fidelity,
        full_precision,
        judge,
        load,
        policy,
        quantize,
        recipe,
        results,
        run,
        save,
        summary,
        table,
        targets,
    )
    from qdit.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "UserError",
    "calibrate",
    "cost",
    "dequantize",
    "design",
    "difference",
    "embedded",
    "export",
    "fidelity",
    "full_precision",
    "judge",
    "load",
    "policy",
    "quantize",
    "recipe",
    "results",
    "run",
    "save",
    "summary",
    "table",
    "targets",
]

on_import.watch()


def __getattr__(name: str) -> Any:
    """A name of the API, from `qdit.api`."""
    if name not in __all__:
        raise AttributeError(f"module 'qdit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("qdit.errors" if name == "UserError" else "qdit.api"), name)


def __dir__() -> list[str]:
    """The API."""
    return sorted([*globals(), *__all__])
