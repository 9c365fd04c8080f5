"""Consistency of a checkpoint: what it claims about itself is compared with what is in it.

`quantized.json` states three times what was quantized: in the layers, whose codes and quantizers compute the outputs;
in the policy, from which costs are counted; and in the config of the run that saved it, from which tables take names
and bits. Somebody who edits one of them can recompute the digest, but the three then no longer agree. Imports no torch.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from qdit.quant.named import at_bits, owned

Node = Any
"""A value as `qdit.checkpoint.serialize` writes it."""
_BOOK = "book"


def contradictions(content: dict[str, Any]) -> list[str]:
    """In which ways a checkpoint's layers, policy and config say different things, one sentence each.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: it has another form than a checkpoint.
    """
    policy, model, config = content["policy"], content["model"], content["provenance"].get("config")
    made: dict[int, Node] = {}
    _collect(model, made)
    attention = {name: _resolved(node, made) for name, node in model["others"]["attention"]["dict"]}
    operands = {
        f"{path.removesuffix('.processor')}.{operand}": node
        for path, processor in attention.items()
        for operand, node in processor["state"]["children"].items()
        if node is not None
    }
    sites = model["layers"].keys() | operands.keys()
    if strange := sorted(sites ^ policy.keys()):
        return [f"policy and layers differ in {', '.join(strange[:3])}"]
    found = [text for name, layer in model["layers"].items() if (text := _layer(name, layer, policy[name], made))]
    for name, node in operands.items():
        found += _input(name, node, policy[name], made)
    if config is not None and "bits" in config and not found:
        found = _labels(config, {name: policy[name] for name in model["layers"]}, model)
        found += _activations(config, policy, operands)
    return found


def _collect(node: Node, made: dict[int, Node]) -> None:
    """Gather the objects of a tree by their numbers."""
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _collect(each, made)
    if isinstance(node, dict) and "object" in node:
        made[node["number"]] = node


def _resolved(node: Node, made: dict[int, Node]) -> Node:
    return made[node["same"]] if isinstance(node, dict) and "same" in node else node


def _layer(name: str, node: Node, claim: dict[str, Any], made: dict[int, Node]) -> str | None:
    """What the policy says of a linear layer that its codes and quantizers do not."""
    leaves = list(_variants(node))
    if not all("rounded" in leaf for leaf in leaves):
        return None  # a layer of a kind that has no codes of its own
    roundings = [_resolved(leaf["rounded"], made) for leaf in leaves]
    held = [None if each is None else each["state"]["spec"] for each in roundings]
    kept = _distinct([span["weight"] for span in claim.get("spans", ())] or [claim["weight"]]) * claim.get("bases", 1)
    if Counter(map(_text, held)) != Counter(map(_text, kept)):
        return f"{name} has weights of {_bits(held)} bits, and its policy says {_bits(kept)}: {_text(claim['weight'])}"
    for leaf in leaves:
        if problems := _input(name, leaf["quantizer"], claim, made):
            return problems[0]
    return None


def _variants(node: Node) -> Iterator[Node]:
    """The layers that one over time is made of; a layer itself."""
    if "variants" not in node:
        yield node
    for each in node.get("variants", ()):
        yield from _variants(each)


def _distinct(specs: list[Any]) -> list[Any]:
    return list({_text(spec): spec for spec in specs}.values())


def _input(name: str, quantizer: Node, claim: dict[str, Any], made: dict[int, Node]) -> list[str]:
    """What the policy says of an input that its quantizer does not."""
    quantizers = list(_quantizers(quantizer, made))
    specs = [_resolved(each["spec"], made)["state"] for each in quantizers]
    wanted = [] if claim["activation"] is None else [claim["activation"]]
    if wanted and wanted[0].get("columns"):  # a quantizer for each of two inputs side by side
        wanted = [wanted[0] | {"columns": None}] * 2
    if list(map(_text, specs)) != list(map(_text, wanted)):
        return [f"{name} rounds its input to {_bits(specs)} bits, and its policy says {_bits(wanted)}"]
    for spec, each in zip(specs, quantizers, strict=True):
        book = _resolved(each[_BOOK], made)["state"] if _BOOK in each else each
        while _BOOK in book:  # one around another
            book = _resolved(book[_BOOK], made)["state"]
        levels = book["high"] - book["low"] + 1 if "high" in book else 2 ** book["bits"] if "bits" in book else 0
        if levels > 2 ** spec["bits"]:
            return [f"{name} rounds its input to {levels} levels, and its policy says {spec['bits']} bits"]
    return []


def _quantizers(node: Node, made: dict[int, Node]) -> Iterator[dict[str, Node]]:
    """The attributes of the modules within one that have a spec."""
    node = _resolved(node, made)
    if node is None:
        return
    state = node["state"]
    if "spec" in state["attributes"]:
        yield state["attributes"]
    for each in state["children"].values():
        yield from _quantizers(each, made)


def _labels(config: dict[str, Any], layers: dict[str, Any], model: dict[str, Any]) -> list[str]:
    """What the config of the run that saved the checkpoint says of linear layers that the policy does not."""
    found = []
    searched, label = "_target_" in config.get("search", {}), config["bits"]["weight"]
    specs = [spec for layer in layers.values() for spec in _kept(layer)]
    bits = {16 if spec is None else spec["bits"] for spec in specs}
    if bits and (label < min(bits) if searched else bits != {label}):
        found.append(f"its config says bits.weight={label}, and its weights have {', '.join(map(str, sorted(bits)))}")
    grid = config.get("weight", {})
    if not searched and grid.get("_target_") == "qdit.weight.WeightGrid":
        own, others = owned(grid, config["bits"].get("weight_format")), set((grid.get("by_role") or {}).values())
        own["grid"] = at_bits(own["grid"], label)
        for key, value in own.items():
            held = (
                {spec.get(key) for spec in specs if spec is not None} - {value} - (others if key == "grid" else set())
            )
            found += [f"its config says weight.{key}={value}, and it has {each}" for each in held]
    if not config["scope"]["roles"] and not config["scope"]["include"]:
        found.append("its config says that nothing is quantized")
    for key, node in {"correction": model["others"]["correction"], "transform": _transform(model)}.items():
        claimed = str(config.get(key, {}).get("_target_", "none")).rpartition(".")[2]
        held = "none" if node is None else str(node["object"]).rpartition(".")[2]
        if (claimed == "none" and held != "none") or (key == "transform" and held not in ("none", claimed)):
            found.append(f"its config says that its {key} is {claimed}, and it has {held}")
    if "_target_" not in config.get("attention", {}) and model["others"]["attention"]["dict"]:
        found.append("its config says that attentions are not quantized, and they are")
    return found


def _kept(layer: dict[str, Any]) -> list[Any]:
    return [span["weight"] for span in layer.get("spans", ())] or [layer["weight"]]


def _transform(model: dict[str, Any]) -> Node:
    return None if model["rewrite"] is None else model["rewrite"]["origin"]["state"]["transform"]


def _activations(config: dict[str, Any], policy: dict[str, Any], operands: Collection[str]) -> list[str]:
    """What the config says of all rounded inputs that the policy does not; operands of attentions may be left out.

    Probabilities may have bits of their own.
    """
    label, attention = config["bits"]["activation"], config.get("attention") or {}
    own = attention.get("probability_bits", (attention.get("probabilities") or {}).get("bits"))
    apart = {name for name in operands if own is not None and name.endswith(".probs")}
    given = {name: layer["activation"]["bits"] for name, layer in policy.items() if layer["activation"] is not None}
    bits = {each for name, each in given.items() if name not in apart}
    if bits != {label} and (bits or label != 16):
        held = ", ".join(map(str, sorted(bits))) or "16"
        return [f"its config says bits.activation={label}, and its inputs have {held}"]
    wrong = {given[name] for name in apart if name in given} - {own}
    return [f"its config says that probabilities have {own} bits, and they have {each}" for each in wrong]


def _text(spec: dict[str, Any] | None) -> str:
    """A spec without what does not apply, in one order."""
    return json.dumps(None if spec is None else {k: v for k, v in spec.items() if v is not None}, sort_keys=True)


def _bits(specs: list[Any]) -> str:
    return ", ".join(str(16 if spec is None else spec["bits"]) for spec in specs) or "16"
