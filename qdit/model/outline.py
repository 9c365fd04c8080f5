"""A pipeline without its weights, by its configs alone: what `dry=true` looks at.

Networks are on the meta device, which has shapes and no memory, so that a plan of 12 B parameters takes seconds. Only
the transformer's config must be there. Where weights lie beside it, their headers must fit to it, which is found
without reading them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qdit.assets import folder_of
from qdit.errors import UserError
from qdit.model.checks import check_schedule
from qdit.model.files import misfit, read_config
from qdit.model.weights import shapes

CONFIGS = ["model_index.json", "transformer*/*.json", "vae/*.json", "scheduler/*.json"]
"""What is fetched from the hub."""


def shell(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A module of diffusers on the meta device.

    Args:
        kind: its class.
        folder: with its config.json, and perhaps its weights.
        dtype: that weights would have, but for those that the class keeps in float32.

    Raises:
        UserError: the class cannot be made of this config, or weights are there and do not fit to it.
    """
    config = read_config(folder)
    try:
        with torch.device("meta"):
            module = kind.from_config(config)
    except Exception as error:  # whatever diffusers says of foreign values
        raise UserError(f"{folder / 'config.json'} makes no {kind.__name__}: {error}") from error
    if has_weights(folder):
        _compare(module, folder)
    kept = set(getattr(kind, "_keep_in_fp32_modules", None) or ())
    for name, weight in module.named_parameters():
        if kept.isdisjoint(name.split(".")):
            weight.data = weight.data.to(dtype)
    return module.eval().requires_grad_(False)


def has_weights(folder: Path) -> bool:
    """Whether anything but configs is in a module's folder."""
    return any(file.suffix not in (".json", ".md", ".txt") for file in folder.iterdir() if file.is_file())


def _compare(module: nn.Module, folder: Path) -> None:
    """Refuse weights of other names or shapes.

    Raises:
        UserError: naming the first of them.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = shapes(folder)
    if text := misfit(sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())):
        raise UserError(f"{folder}: {text}")
    if other := [name for name in wanted if wanted[name] != found[name]]:
        raise UserError(
            f"{folder}: config.json and the weights do not fit together: {other[0]} is {found[other[0]]} in the "
            f"weights, and the config asks for {wanted[other[0]]}"
        )


def shell_beside(root: Path, other: str | None, kind: str, check: Callable[[Path], None]) -> nn.Module | None:
    """The autoencoder of a pipeline's folder, or another one; None where its config is not on this machine.

    Args:
        root: the pipeline.
        other: None, or a folder (or a hub id, which is not fetched for a look).
        kind: the name of diffusers' class.
        check: refuses a folder that holds another class, or values that cannot be.

    Raises:
        UserError: it is refused, or its weights do not fit to its config.
    """
    import diffusers

    places = [root / "vae"] if other is None else [folder_of(other) / "vae", folder_of(other)]
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        return None
    check(folder)
    return shell(getattr(diffusers, kind), folder, torch.float32)


def schedule_of(folder: Path, allowed: Sequence[str]) -> dict[str, Any]:
    """A scheduler's config; where its folder is not there, the defaults of the first class that is allowed.

    Raises:
        UserError: it is there, and cannot be.
    """
    file = folder / "scheduler_config.json"
    if file.is_file():
        found = read_config(folder, file.name)
        check_schedule(file, found, tuple(allowed))
        return found
    import diffusers

    return dict(getattr(diffusers, allowed[0])().config) | {"_class_name": allowed[0]}
