"""A quantized network in itself: the modules that differ from the stock ones, as JSON beside tensors, and back.

Format 1 (`qdit.checkpoint.checkpoint`) keeps what is different from a base model that is there when it is loaded. Here
no base model is needed: a layer is written with its bias, its branch and the size of its patches, and a layer that a
transform rewrote and nobody rounds has its weight, too. What is an ordinary layer with other numbers is not written at
all: its numbers are in the network's own `state_dict`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdit.checkpoint.serialize import Reader, Writer
from qdit.nn.linear import QuantLinear
from qdit.nn.switch import TimedLinear

Tree = dict[str, Any]


def write(layers: Mapping[str, nn.Module], dtype: torch.dtype) -> tuple[Tree, dict[str, Tensor]]:
    """The JSON values of modules by name, and the tensors that they name.

    Args:
        layers: of one network; what several of them share is written once.
        dtype: of the network.

    Raises:
        UserError: there is something in a module that cannot be saved.
    """
    writer = Writer()
    return {name: _node(writer, name, layer, dtype) for name, layer in layers.items()}, writer.tensors


def _node(writer: Writer, name: str, layer: nn.Module, dtype: torch.dtype) -> Tree:
    if type(layer) is TimedLinear:
        variants = [_node(writer, f"{name}.{number}", each, dtype) for number, each in enumerate(layer.variants)]
        return {"variants": variants, "order": writer.value(layer.order, name), "now": writer.value(layer.now, name)}
    if type(layer) is not QuantLinear:
        return writer.value(layer, name)
    return {
        "rounded": writer.value(layer.rounded, name),
        "weight": writer.value(layer.weight, f"{name}.weight") if layer.rounded is None else None,
        "bias": writer.value(layer.bias, f"{name}.bias"),
        "quantizer": writer.value(layer.quantizer, f"{name}.quantizer"),
        "branch": writer.value(layer.branch, f"{name}.branch"),
        "patch": layer.patch,
        "dtype": writer.value(layer.dtype, name),
    }


def read(reader: Reader, tree: Tree) -> dict[str, nn.Module]:
    """The modules that `write` wrote, in evaluation mode; the tree is read in the order in which it was written.

    Raises:
        UserError, or another of `Reader.WRONG`: the tree does not say what it should.
    """
    return {name: _layer(reader, node) for name, node in tree.items()}


def _layer(reader: Reader, node: Tree) -> nn.Module:
    if "variants" in node:
        variants = [_layer(reader, part) for part in node["variants"]]
        return TimedLinear(variants, reader.value(node["order"]), reader.value(node["now"])).eval()
    if "rounded" not in node:
        made = reader.value(node)
        if not isinstance(made, nn.Module):
            raise TypeError(f"a {type(made).__name__} stands where a module should")
        return made
    rounded, weight, bias = (reader.value(node[part]) for part in ("rounded", "weight", "bias"))
    stub = nn.Module()
    stub.weight = weight if rounded is None else torch.empty(0, 0, dtype=reader.value(node["dtype"]))
    stub.bias, stub.patch = bias, node["patch"]
    quantizer = reader.value(node["quantizer"])
    stub.branch = reader.value(node["branch"])
    return QuantLinear(stub, rounded, quantizer).eval()
