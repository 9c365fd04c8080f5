"""What the two files of a folder that diffusers reads say of a quantized network, and whether they say the same.

See `qdit.checkpoint.diffusers`, which puts the network together.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qdit.checkpoint import whole
from qdit.checkpoint.claims import contradictions
from qdit.checkpoint.installed import needed, replacements
from qdit.checkpoint.on_import import METHOD
from qdit.checkpoint.serialize import Reader, Writer
from qdit.errors import UserError
from qdit.model.base import Fold, Source
from qdit.nn.basis import Rotation, Scale, Shift
from qdit.storage.digest import digest
from qdit.storage.tensors import tensors_digest
from qdit.transform.base import Folded

FORMAT = 1
KEYS = {"format", "base", "policy", "run_time", "parameters", "provenance"}
KINDS = ("rewritten", "layers", "attention")
FOLDED = "folded"
"""What was folded, in the header, and the beginning of its tensors' names."""
AGAIN = "save it again with save_pretrained, or copy the folder again"


def described(model: Any) -> dict[str, Any]:
    """What `config.json` says of a quantized model."""
    state = needed(model)
    content = {
        "format": FORMAT,
        "base": {"class": type(model).__name__, "dtype": str(model.dtype).removeprefix("torch.")},
        "policy": state.quantized.policy.tree(),
        "run_time": [[r.site.name, r.storage_bits, r.operations, r.weight_bits] for r in state.run_time],
        "parameters": state.parameters,
        "provenance": state.about,
    }
    return json.loads(json.dumps(content))


def _stock(layer: nn.Module) -> bool:
    """Whether a layer is one of the network's own kind, with other numbers, which its `state_dict` holds."""
    return type(layer) in (nn.Linear, nn.Conv2d, nn.Conv3d)


def packed(model: Any) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """The modules of a quantized model that are no stock ones: as a tree, their tensors, and their paths."""
    quantized = needed(model).quantized
    own = {name: layer for name, layer in sorted(replacements(quantized).items()) if not _stock(layer)}
    nodes, tensors = whole.write(own, model.dtype)
    kinds = {"layers": quantized.layers, "attention": quantized.attention}
    kind_of = {name: kind for kind, names in kinds.items() for name in names}
    tree: dict[str, Any] = {"modules": [[name, kind_of.get(name, "rewritten"), node] for name, node in nodes.items()]}
    if (folded := quantized.rewrite.folded) is not None:
        writer = Writer()
        tree[FOLDED] = [
            {
                "sources": [[s.layer, list(s.linear), list(s.one_plus)] for s in each.fold.sources],
                "readers": list(each.fold.readers),
                "steps": writer.value(each.steps, f"{FOLDED}.{number}"),
            }
            for number, each in enumerate(folded)
        ]
        tensors |= writer.tensors
    return tree, tensors, [*own, FOLDED]


def folds_of(nodes: list[dict[str, Any]] | None, tensors: dict[str, Tensor], device: torch.device) -> Any:
    """What was folded, as `packed` wrote it; None where a folder does not say.

    Raises:
        ValueError, or another of `Reader.WRONG`: the nodes do not say what they should.
    """
    if nodes is None:
        return None
    reader, found = Reader(tensors, device), []
    for node in nodes:
        sources = tuple(Source(layer, tuple(linear), tuple(plus)) for layer, linear, plus in node["sources"])
        steps = reader.value(node["steps"])
        if not all(type(step) in (Scale, Shift, Rotation) for step in steps):
            raise ValueError("something else than a scale, a shift or a rotation is folded")
        found.append(Folded(Fold(sources, tuple(node["readers"])), steps))
    return tuple(found)


def below(name: str, places: Iterable[str]) -> bool:
    """Whether a tensor's name is below one of the paths of modules."""
    return any(name.startswith(f"{place}.") for place in places)


def read_folder(files: list[Path], content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `packed` made of the model, and the tensors of a folder's files, after they were compared with its config.

    Raises:
        UserError: they are damaged, of different saves, or say different things.
    """
    tensors: dict[str, Tensor] = {}
    found: list[dict[str, Any]] = []
    try:
        for file in files:
            with safe_open(file, "pt") as stream:
                found.append(json.loads((stream.metadata() or {})[METHOD]))
                tensors |= {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a dict
        about = dict(found[0])
        if about.pop("digest") != digest(about) or any(each != found[0] for each in found):
            raise ValueError("its header was changed")
        if about["config"] != digest(content):
            raise ValueError("config.json is of another save, or was changed")
        if about["tensors"] != tensors_digest(tensors):
            raise ValueError("its tensors were changed, or some are missing")
        tree = about["model"]
        modules = tree["modules"]
        if {kind for _, kind, _ in modules} - set(KINDS) or not all(isinstance(name, str) for name, *_ in modules):
            raise ValueError("it has modules of an unknown kind")
        problems = contradictions({**content, "model": _claims(modules)})
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise UserError(f"{files[0]} is damaged, or not of qdit ({reason}); {AGAIN}") from error
    if problems:
        raise UserError(f"{files[0]} contradicts its config.json: {'; '.join(problems[:3])}. Quantize anew")
    return tree, tensors


def _claims(modules: list[list[Any]]) -> dict[str, Any]:
    """The modules as `qdit.checkpoint.claims` reads them."""
    rewritten = [[name, node] for name, kind, node in modules if kind == "rewritten"]
    layers = {name: node for name, kind, node in modules if kind == "layers"}
    attention = {"dict": [[name, node] for name, kind, node in modules if kind == "attention"]}
    # In the order in which a format 1 has them; that a transform was there is seen in its layers alone.
    others = {"attention": attention, "correction": None}
    return {"rewritten": rewritten, "rewrite": None, "layers": layers, "others": others}
