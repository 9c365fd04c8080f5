"""A quantized model on disk, for every recipe: only what differs from the base model.

A checkpoint is a folder with two files. `quantized.safetensors` holds codes (packed, at their bits), scales, zero
points, biases, the grids of static inputs, corrections, and the factors of a transform; `quantized.json`
(`qdit.checkpoint.manifest`) says what they are. Loading needs the base model with exactly the same weights, and neither
calibration data nor a recipe: layers are assembled from their codes, and a transform, which is a function of the
weights and its factors, is carried out again (and what it leaves in full precision is compared with its digest). The
outputs are those of the model that was saved, bit for bit. Nothing is unpickled: `qdit.checkpoint.serialize` says what
may be in the files.

    save(quantized, folder, provenance(model))           quantized = load(folder, model)
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qdit.checkpoint.manifest import MANIFEST, TENSORS, Manifest, write
from qdit.checkpoint.serialize import Reader, Writer
from qdit.environment import git_state, now, versions
from qdit.errors import UserError
from qdit.model.base import DiffusionModel
from qdit.nn.clock import Clock
from qdit.nn.linear import QuantLinear
from qdit.nn.switch import TimedLinear
from qdit.policies import Policy
from qdit.quantized import Quantized
from qdit.scope import Scope
from qdit.storage.tensors import load_tensors, save_plain, tensors_digest
from qdit.transform import Rewrite, Transform

APART = ("policy", "layers", "rewrite", "allocation")
"""Fields of a `Quantized` that are saved in their own way; how a policy was found stays with the run that found it."""


def provenance(model: DiffusionModel, **about: Any) -> dict[str, Any]:
    """Where a checkpoint comes from: the full-precision model that it belongs to, the code, and what else is given."""
    return {"base": identity(model), "saved": now(), "versions": versions(), "git": git_state(), **about}


def identity(model: DiffusionModel) -> dict[str, Any]:
    """What identifies a base model: a digest of its denoiser's weights, and their dtype."""
    return {"digest": tensors_digest(model.denoiser.state_dict()), "dtype": str(model.dtype).removeprefix("torch.")}


def save(quantized: Quantized, folder: Path, provenance: Mapping[str, Any]) -> Manifest:
    """Write a checkpoint; one that is there is replaced, and a save that is killed leaves none.

    Args:
        quantized: the fitted model.
        folder: of the two files.
        provenance: as the function `provenance` makes it.

    Raises:
        UserError: the disk is full, or the model has something in it that cannot be saved.
    """
    writer, about = Writer(), dict(provenance)
    base = about.pop("base")
    own = [f.name for f in fields(quantized) if f.name not in APART]
    tree = {  # in the order in which `load` reads them
        "rewrite": _rewrite(writer, quantized),
        "layers": {name: _layer(writer, name, layer) for name, layer in quantized.layers.items()},
        "others": {name: writer.value(getattr(quantized, name), name) for name in own},
    }
    (folder / MANIFEST).unlink(missing_ok=True)
    save_plain(folder / TENSORS, writer.tensors)
    return write(folder, {"base": base, "policy": quantized.policy.tree(), "model": tree, "provenance": about})


def _layer(writer: Writer, name: str, layer: nn.Module) -> dict[str, Any]:
    """A quantized layer; of the usual one, what is not the base model's."""
    if type(layer) is TimedLinear:
        variants = [_layer(writer, f"{name}.{number}", variant) for number, variant in enumerate(layer.variants)]
        return {"variants": variants, "order": writer.value(layer.order, name), "now": writer.value(layer.now, name)}
    if type(layer) is not QuantLinear:
        return writer.value(layer, name)
    return {
        "rounded": writer.value(layer.rounded, name),
        "bias": writer.value(layer.bias, f"{name}.bias"),
        "quantizer": writer.value(layer.quantizer, f"{name}.quantizer"),
    }


def _rewrite(writer: Writer, quantized: Quantized) -> dict[str, Any] | None:
    rewrite = quantized.rewrite
    if not rewrite.layers:
        return None
    if rewrite.origin is None:
        raise UserError(
            "this model's rewrite does not say which transform made it (Rewrite.origin); it cannot be saved"
        )
    origin = writer.value(rewrite.origin, "transform")
    return {"origin": origin, "kept": _kept(rewrite, quantized.layers)}


def _kept(rewrite: Rewrite, quantized: Iterable[str]) -> str:
    """A digest of what a rewrite leaves in full precision."""
    names = rewrite.layers.keys() - set(quantized)
    return tensors_digest({f"{n}.{k}": v for n in names for k, v in rewrite.layers[n].state_dict().items()})


def verify(manifest: Manifest, model: DiffusionModel) -> None:
    """Refuse a checkpoint that is damaged, of another base model, or whose scope is not what is quantized.

    Raises:
        UserError: it is.
    """
    manifest.check_tensors()
    saved, here = manifest.content["base"], identity(model)
    if saved["dtype"] != here["dtype"]:
        raise UserError(
            f"{manifest.folder} was saved of a model in {saved['dtype']}, and this one is in {here['dtype']}; use "
            f"dtype={saved['dtype']}"
        )
    if saved["digest"] != here["digest"]:
        raise UserError(
            f"{manifest.folder} belongs to a model with other weights (digest {saved['digest']}, here "
            f"{here['digest']}); choose the model that it was made of, or quantize this one"
        )
    scope = (manifest.content["provenance"].get("config") or {}).get("scope")
    if scope is None or scope.get("_target_") != "qdit.scope.Scope":
        return
    chosen = Scope(**{key: scope[key] for key in ("roles", "include", "exclude")}).select(model.sites())
    if strange := {site.name for site in chosen} ^ manifest.content["model"]["layers"].keys():
        raise UserError(
            f"{manifest.folder} contradicts itself: its config's scope and its layers differ in "
            f"{', '.join(sorted(strange)[:3])}. It was changed after it was saved; quantize anew"
        )


@torch.no_grad()
def load(folder: Path, model: DiffusionModel) -> Quantized:
    """The model that `save` wrote; `model` is read, not changed.

    Args:
        folder: of the checkpoint, or of the run that saved it.
        model: the base model in full precision.

    Raises:
        UserError: there is no checkpoint, or it is damaged, foreign, of a newer format or of another base model.
    """
    manifest = Manifest.read(folder)
    verify(manifest, model)
    reader = Reader(load_tensors(manifest.tensors), model.device, {Clock: model.clock})
    tree = manifest.content["model"]
    try:
        rewrite = Rewrite() if tree["rewrite"] is None else reader.value(tree["rewrite"]["origin"]).rewrite(model)
        with rewrite.installed(model):
            layers = {
                name: _loaded(reader, node, model.denoiser.get_submodule(name)) for name, node in tree["layers"].items()
            }
        others = {name: reader.value(node) for name, node in tree["others"].items()}
        quantized = Quantized(Policy.of(manifest.content["policy"]), layers, rewrite=rewrite, **others)
    except Reader.WRONG as error:
        raise UserError(
            f"{manifest.folder} cannot be put together by this version of qdit ({type(error).__name__}: {error}); use "
            "the one that wrote it (see provenance in quantized.json), or quantize anew"
        ) from error
    if tree["rewrite"] is not None and _kept(rewrite, layers) != tree["rewrite"]["kept"]:
        raise UserError(
            f"{manifest.folder}: this version of qdit, or this device, carries out the transform otherwise than what "
            "saved it; use the same ones, or quantize anew"
        )
    return quantized


def transform_of(manifest: Manifest) -> tuple[Transform, list[str]] | None:
    """The transform of a checkpoint and the names of the sites that it was given; None if it has none."""
    if (rewrite := manifest.content["model"]["rewrite"]) is None:
        return None
    reader, origin = Reader({}, torch.device("cpu")), rewrite["origin"]["state"]
    return reader.value(origin["transform"]), reader.value(origin["sites"])


def _loaded(reader: Reader, node: dict[str, Any], full: nn.Module) -> nn.Module:
    """The inverse of `_layer`: the quantized layer of `full`, which is that of the rewritten network.

    Of a layer with several bases over time, each variant is made of its own.
    """
    if "variants" in node:
        parts, bases = node["variants"], [full] * len(node["variants"])
        if isinstance(full, TimedLinear) and not any("variants" in part for part in parts):
            bases = list(full.variants)
        variants = [_loaded(reader, part, basis) for part, basis in zip(parts, bases, strict=True)]
        return TimedLinear(variants, reader.value(node["order"]), reader.value(node["now"])).eval()
    if "rounded" not in node:
        return reader.value(node)
    rounded, bias, quantizer = (reader.value(node[part]) for part in ("rounded", "bias", "quantizer"))
    layer = QuantLinear(full, rounded, quantizer).eval()
    layer.bias = bias
    return layer
