"""Models that leave: folders that others read, and which recipes can be in which of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from qdit.api.adapters import embedded, network_of
from qdit.api.compose import composed, composed_recipe
from qdit.api.measures import cost
from qdit.api.models import load
from qdit.assets import CONF
from qdit.checkpoint.installed import needed, replacements
from qdit.cli import recall
from qdit.cli.design import NO_METHOD
from qdit.errors import UserError
from qdit.exports import history
from qdit.exports.card import About, card
from qdit.exports.forms import Form, form_of, forms_of
from qdit.exports.kinds import cures
from qdit.exports.targets import TARGETS, Target, empty_folder, saved, target_of, upload
from qdit.exports.torchao import incurable
from qdit.model.base import DiffusionModel
from qdit.model.dit import DiT
from qdit.model.hub import is_id


def export(model: Any, folder: str | Path, to: str = "torchao", *, near: bool = False, push: str | None = None) -> None:
    """Write a folder that `from_pretrained` reads: elsewhere, without a base model, without data.

    Args:
        model: a pipeline whose transformer is quantized; a quantized transformer; or the folder of a run that saved its
            checkpoint, whose card then has its metrics.
        folder: that is not there yet, or is empty.
        to: `torchao`, which diffusers reloads where torchao is installed, and which holds some recipes; or `diffusers`,
            which holds all of them, and which diffusers reloads where qdit is installed.
        near: whether a symmetric input may be rounded with torchao's step, of max / 127.5 instead of max / 127.
        push: `owner/name` on the hub, to which the folder is uploaded; None keeps it here.

    Raises:
        UserError: the model is not quantized; the folder is not empty; or the target cannot say a part of the recipe,
            which the message names, with the target that can.

    >>> import qdit, tempfile
    >>> from pathlib import Path
    >>> pipe, folder = qdit.embedded(), tempfile.mkdtemp()
    >>> _ = qdit.quantize(pipe.transformer, "rtn", bits="w8a8")
    >>> qdit.export(pipe, folder, to="diffusers")
    >>> "Quantized by qdit's recipe `rtn`" in Path(folder, "README.md").read_text()
    True
    """
    target, config, record = target_of(to), None, None
    place = empty_folder(folder)
    if isinstance(model, str | Path):
        config, record = history.run_folder(Path(model))
        model = _quantized(Path(model), config)
    whole = getattr(model, "transformer", None) is not None
    network = network_of(model.transformer if whole else model)
    made = target.network(network, near)
    saved(model if whole else None, made, place)
    recipe = config if config is not None else needed(network).about.get("config")
    name = push or place.name
    kind = type(model if whole else network).__name__
    read = f'{kind}.from_pretrained("{name}", torch_dtype={network.dtype})'
    about = About(
        name=name,
        target=to,
        needs=target.needs,
        loading=(
            *target.imports,
            f"from diffusers import {kind}",
            "",
            f"{'pipe' if whole else 'transformer'} = {read}",
        ),
        cost=cost(network),
        near=near and to == "torchao" and any(map(_near, replacements(needed(network).quantized).values())),
        base=_base(config),
        config=recipe,
        record=record,
        command=None if record is None else recall.command([record["config"]]) or None,
        task=_task(needed(network).adapter),
    )
    card(about).save(place / "README.md")
    if push is not None:
        upload(place, push)


def _near(layer: torch.nn.Module) -> bool:
    """Whether torchao would round the layer's inputs with other steps than qdit's."""
    spec = form_of(layer).inputs
    return spec is not None and spec.grid == "symmetric" and spec.dynamic


def _quantized(run: Path, config: dict[str, Any]) -> Any:
    """The pipeline of a run, quantized by its checkpoint."""
    pipe = embedded() if config["model"].get("path") is None else history.read_pipeline(config)
    load(run, pipe.transformer)
    return pipe


def _base(config: dict[str, Any] | None) -> str | None:
    path = None if config is None else config["model"].get("path")
    return path if is_id(path) else None


def _task(adapter: Any) -> str:
    """What a model makes of what, in the hub's words."""
    made = adapter.modality
    if hasattr(adapter, "encoder_of"):
        return f"text-to-{made}"
    return "unconditional-image-generation" if made == "image" else "other"


def targets(*names: str, bits: str = "w8a8") -> pd.DataFrame:
    """What recipes can be exported to: a row a recipe, a column a target.

    A cell says `yes`; `with` the words of the command line that make it possible; or `no` and what hinders.

    Args:
        names: of recipes; none are all of `conf/quantizer`, which takes half a minute.
        bits: an option of `conf/bits`.

    Raises:
        UserError: a name is unknown, or `bits` are.

    >>> import qdit
    >>> qdit.targets("svdquant").loc["svdquant"].tolist()
    ['no: low-rank branch', 'yes']
    """
    if unknown := [name for name in names if name not in recipes()]:
        raise UserError(f"there is no recipe {unknown[0]!r}; there are {', '.join(recipes())}")
    composed(f"bits={bits}")  # what is wrong with bits is no reason of a recipe's
    model, asked = DiT(name="emoji_dit").outline("cpu", torch.float32), list(names) or recipes()
    return pd.DataFrame([_row(name, bits, model) for name in asked], pd.Index(asked, name="recipe"))


def recipes() -> list[str]:
    """The names of the recipes that quantize, by the alphabet."""
    return sorted(file.stem for file in (CONF / "quantizer").glob("*.yaml") if file.stem not in NO_METHOD)


def _row(name: str, bits: str, model: DiffusionModel) -> dict[str, str]:
    """The cells of a recipe."""
    needed = []

    def forms(*words: str) -> dict[str, Form]:
        return forms_of(composed_recipe(name, (*needed, *words), bits)[0], model)

    try:
        if composed_recipe(name, (), bits)[0].correction is not None:
            needed.append("correction=none")  # it is the sampler's, and not in the transformer
        own = forms()
    except UserError as error:
        return dict.fromkeys(TARGETS, f"no: {' '.join(str(error).split())}")
    return {target: _cell(TARGETS[target], own, needed, forms) for target in TARGETS}


def _cell(target: Target, own: dict[str, Form], needed: list[str], forms: Callable[..., dict[str, Form]]) -> str:
    found = target.hindered(own, False)
    ways = cures(own.values()) if found else [()]
    for words in ways:
        if not target.hindered(forms(*words), False):
            return f"with {' '.join(f'`{word}`' for word in (*needed, *words))}" if needed or words else "yes"
    return f"no: {', '.join(incurable(own)) or '; '.join(found)}"
