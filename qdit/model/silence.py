"""Pipelines are read without the bars of the libraries that read them: a command's output is its own."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of diffusers and transformers while a pipeline is read; those of a user's own calls stay."""
    here = [name for name in ("diffusers", "transformers") if find_spec(name) is not None]
    shown = [
        each for name in here if (each := importlib.import_module(f"{name}.utils.logging")).is_progress_bar_enabled()
    ]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()
