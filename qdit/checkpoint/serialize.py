"""Serialize objects as plain JSON values beside named tensors, and read them back, without pickle.

A module becomes its class's name, its attributes, buffers, parameters and children; a dataclass becomes its fields. The
class must be one of those in `qdit.checkpoint.known`; its state consists of plain values, tensors, and such objects. An
object that occurs twice is stored once, so that q, k and v still share the quantizer of their input. Codes of rounded
weights are bit-packed. Left out: hooks.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from qdit.checkpoint.known import check_members, find_class, is_known, path_of
from qdit.errors import UserError
from qdit.quant.affine import Affine, code_range
from qdit.quant.grid import Rounded, from_tensors, shapes_of, tensors_of
from qdit.quant.packing import pack, unpack
from qdit.quant.scales import SCALES
from qdit.quant.spec import QuantSpec

_MODULE = frozenset(vars(nn.Module()))  # torch's own entries of a module's state
_WORDS = {"scale": "scales", "zero_point": "zero points", "whole": "common parts of scales"}
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)


class Writer:
    """Turns objects into JSON values; their tensors gather in `tensors`, by path, on the CPU."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._numbers: dict[int, int] = {}  # of the objects met so far, by id
        self._met: list[Any] = []  # keeps the ids unique

    def value(self, value: Any, path: str) -> Any:
        """The JSON value of anything; `path` names its tensors.

        Raises:
            UserError: there is something in it that cannot be saved.
        """
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self.tensor(path, value)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.value(v, f"{path}.{i}") for i, v in enumerate(value)]}
        if isinstance(value, dict):
            return {"dict": [[self.value(k, path), self.value(v, f"{path}.{k}")] for k, v in value.items()]}
        if id(value) in self._numbers:
            return {"same": self._numbers[id(value)]}
        return self._object(value, path)

    def tensor(self, path: str, tensor: Tensor) -> str:
        """Take in a tensor; its name."""
        name = path
        while name in self.tensors:
            name += "_"
        self.tensors[name] = tensor.detach().cpu().clone()
        return name

    def _object(self, value: Any, path: str) -> dict[str, Any]:
        kind = type(value)
        if not is_known(kind):
            raise UserError(
                f"{path} is a {path_of(kind)}, which cannot be saved: the classes of qdit.checkpoint.known, their "
                "tensors and plain values can. Declare a class of yours with qdit.checkpoint.known.declare, or use "
                "save_checkpoint=false"
            )
        number = self._numbers[id(value)] = len(self._met)
        self._met.append(value)
        if isinstance(value, Rounded):
            parts = self._rounded(value, path)
        elif isinstance(value, nn.Module):
            parts = self._module(value, path)
        else:
            parts = {name: self.value(getattr(value, name), f"{path}.{name}") for name in _shown(value)}
        return {"object": path_of(kind), "number": number, "state": parts}

    def _module(self, module: nn.Module, path: str) -> dict[str, Any]:
        state = vars(module)
        left = _MODULE.union(getattr(type(module), "UNSAVED", ()))
        own = {key: value for key, value in state.items() if key not in left}
        kinds = {"attributes": own, "buffers": module._buffers, "parameters": module._parameters}
        kinds["children"] = module._modules
        parts = {
            kind: {key: self.value(value, f"{path}.{key}") for key, value in members.items()}
            for kind, members in kinds.items()
        }
        try:
            check_members(type(module), [name for members in parts.values() for name in members])
        except ValueError as error:
            raise UserError(f"{path} cannot be saved: {error}. Use save_checkpoint=false") from error
        return parts | {"training": module.training}

    def _rounded(self, rounded: Rounded, path: str) -> dict[str, Any]:
        """Codes at their bits, scales as they are kept.

        Zero points are the smallest integers that hold them; there are none where the grid fixes them.
        """
        spec, grid = rounded.spec, rounded.grid
        parts = {"codes": pack(rounded.codes, spec.bits, code_range(spec)[0]), **tensors_of(grid)}
        if not isinstance(grid, Affine):
            parts["scale"] = SCALES[spec.scale].pack(grid.stored)
        elif torch.equal(grid.zero_point, fixed_zero_point(grid.scale, spec)):
            del parts["zero_point"]
        else:
            parts["zero_point"] = as_integers(grid.zero_point)
        names = {part: self.tensor(f"{path}.{part}", tensor) for part, tensor in parts.items()}
        return {"spec": spec.as_dict(), "shape": list(rounded.codes.shape), **names}


def _shown(value: Any) -> list[str]:
    """The fields of a dataclass, without those that checkpoints of before do not know and that say nothing."""
    return [f.name for f in fields(value) if not (f.metadata.get("newer") and getattr(value, f.name) == f.default)]


def as_integers(values: Tensor) -> Tensor:
    """The values as the smallest integers that hold all of them exactly; unchanged where none do.

    >>> as_integers(torch.tensor([3.0, -2.0])).dtype, as_integers(torch.tensor([0.5])).dtype
    (torch.int8, torch.float32)
    """
    for dtype in _INTEGERS:
        limits = torch.iinfo(dtype)
        if values.amin() >= limits.min and values.amax() <= limits.max and values.eq(values.round()).all():
            return values.to(dtype)
    return values


class Reader:
    """The inverse of `Writer`.

    A file that does not say what it should makes it raise any of `WRONG`.

    Args:
        tensors: by name.
        device: where they go.
        given: objects that are not made anew, by class: those that a saved model shares with its base model.
    """

    WRONG = (KeyError, IndexError, TypeError, ValueError, AttributeError, ImportError, RuntimeError, UserError)

    def __init__(
        self, tensors: dict[str, Tensor], device: torch.device, given: Mapping[type, Any] | None = None
    ) -> None:
        self.tensors, self.device, self.given = tensors, device, given or {}
        self._made: dict[int, Any] = {}

    def value(self, node: Any) -> Any:
        """What a JSON value stands for."""
        if not isinstance(node, dict):
            return node
        if "object" in node:
            return self._object(node)
        ((kind, content),) = node.items()
        if kind == "tensor":
            return self.tensors[content].to(self.device)
        if kind == "dtype":
            return _dtype(content)
        if kind in ("list", "tuple"):
            members = [self.value(v) for v in content]
            return members if kind == "list" else tuple(members)
        if kind == "dict":
            return {self.value(key): self.value(value) for key, value in content}
        if kind == "same":
            return self._made[content]
        raise ValueError(f"{kind!r} is unknown")

    def _object(self, node: dict[str, Any]) -> Any:
        kind, state = find_class(node["object"]), node["state"]
        if kind in self.given:
            made = self.given[kind]
        elif kind is Rounded:
            made = self._rounded(state)
        elif issubclass(kind, nn.Module):
            made = self._module(kind, state)
        else:
            made = self._dataclass(kind, state)
        self._made[node["number"]] = made
        return made

    def _module(self, kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
        members = ("attributes", "buffers", "parameters", "children")
        check_members(kind, [name for part in members for name in state[part]])
        made = kind.__new__(kind)
        nn.Module.__init__(made)
        vars(made).update({key: self.value(value) for key, value in state["attributes"].items()})
        for key, value in state["buffers"].items():
            made.register_buffer(key, self.value(value))
        for key, value in state["parameters"].items():
            found = self.value(value)
            made.register_parameter(key, None if found is None else nn.Parameter(found, requires_grad=False))
        for key, value in state["children"].items():
            made.add_module(key, self.value(value))
        return made.train(state["training"])

    def _dataclass(self, kind: type, state: dict[str, Any]) -> Any:
        newer = {f.name: f.default for f in fields(kind) if f.metadata.get("newer")}
        if state.keys() | newer.keys() != {f.name for f in fields(kind)}:
            raise ValueError(f"{kind.__name__} has other fields")
        made = object.__new__(kind)
        for key, value in {**newer, **{key: self.value(value) for key, value in state.items()}}.items():
            object.__setattr__(made, key, value)
        if (check := getattr(made, "__post_init__", None)) is not None:
            check()
        return made

    def _rounded(self, state: dict[str, Any]) -> Rounded:
        spec = QuantSpec(**state["spec"])
        low, _ = code_range(spec)
        codes = unpack(self.tensors[state["codes"]], spec.bits, tuple(state["shape"]), low).to(self.device)
        length = spec.row_length(codes.shape[-1], codes.numel())
        parts = {"scale": self.tensors[state["scale"]].to(self.device)}
        if spec.has_levels:
            parts["scale"] = SCALES[spec.scale].unpack(parts["scale"])
        elif "zero_point" not in state:
            parts["zero_point"] = fixed_zero_point(parts["scale"], spec)
        parts |= {key: self.tensors[state[key]].to(parts["scale"]) for key in ("zero_point", "whole") if key in state}
        rows = codes.numel() // length
        if {key: tuple(part.shape) for key, part in parts.items()} != shapes_of(rows, spec):
            found = " and ".join(f"{part.numel()} {_WORDS[key]}" for key, part in parts.items())
            raise ValueError(f"{found} do not fit {rows} rows")
        return Rounded(codes, from_tensors(parts, spec, length), spec)


def fixed_zero_point(scale: Tensor, spec: QuantSpec) -> Tensor:
    """The zero points of a grid that has no choice (see `QuantSpec.symmetric`), as many as there are scales."""
    return torch.full_like(scale, 2 ** (spec.bits - 1) if spec.grid == "symmetric_full" else 0)


def _dtype(name: str) -> torch.dtype:
    """The dtype of a name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(found := getattr(torch, name, None), torch.dtype):
        raise ValueError(f"{name} is no dtype")
    return found
