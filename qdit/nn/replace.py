"""Replace modules of a network for a while; no module is edited, so that the network is bit-identical afterwards."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from qdit.nn.attention import Attend


@contextmanager
def replaced(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    """`model` with the submodules of the given names replaced; the originals are back afterwards, whatever happens.

    What is replaced may also be an attribute that is no module, as an attention's processor is.
    """
    originals = current(model, layers)
    try:
        put(model, layers)
        yield model
    finally:
        put(model, originals)


def put(model: nn.Module, things: Mapping[str, Any]) -> dict[str, Any]:
    """Put modules, and attributes that are none, in the places of the given names for good; what was there before."""
    before = current(model, things)
    for name, thing in things.items():
        owner, key = _place(model, name)
        if isinstance(thing, Attend):
            thing.replace(before[name])
        if not isinstance(thing, nn.Module):
            delattr(owner, key)  # a module gives way to another module only
        setattr(owner, key, thing)
    return before


def current(model: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """What now has the given names in a model: what `replaced` takes to have it back for a while."""
    return {name: getattr(*_place(model, name)) for name in names}


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds what is called `name`, and what it is called there."""
    owner, _, key = name.rpartition(".")
    return model.get_submodule(owner), key
