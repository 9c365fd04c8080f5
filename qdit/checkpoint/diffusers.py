"""Folders that diffusers reads and writes: `pipe.save_pretrained("mine")`, `DiTPipeline.from_pretrained("mine")`.

`config.json` says under `quantization_config` what the folder holds: `format`, the `policy` of every site, and where it
comes from. The safetensors file has the codes packed at their bits, scales, zero points, and whatever stayed in full
precision, by module path; its header says what modules they make (`qdit.checkpoint.whole`), and has digests of
everything, with which no two files of different saves go together. Unlike format 1 (`qdit.checkpoint.checkpoint`) it
needs no base model: it is read wherever qdit is imported. As there, nothing is unpickled, the classes are those of
`qdit.checkpoint.known`, and what the policy says is compared with what the layers hold.
"""

import json
from collections.abc import Iterable
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qdit.checkpoint import whole
from qdit.checkpoint.claims import contradictions
from qdit.checkpoint.installed import install, needed, replacements, swap
from qdit.checkpoint.on_import import METHOD
from qdit.checkpoint.serialize import Reader
from qdit.errors import UserError
from qdit.ledger import RunTime
from qdit.model.adapter import adapt, moved
from qdit.model.base import DiffusionModel
from qdit.nn.clock import Clock
from qdit.policies import Policy
from qdit.quantized import Quantized
from qdit.storage.digest import digest
from qdit.storage.tensors import tensors_digest
from qdit.transform import Rewrite

FORMAT = 1
_KEYS = {"format", "base", "policy", "run_time", "parameters", "provenance"}
KINDS = ("rewritten", "layers", "attention")
_AGAIN = "save it again with save_pretrained, or copy the folder again"


class QuantMethod(StrEnum):
    """What diffusers calls the method; it asks a member of an Enum for its `value`."""

    QDIT = METHOD


class QditConfig(QuantizationConfigMixin):
    """`quantization_config` of a model's config: of a folder that was read, or of a model that is quantized now.

    Args:
        content: the values of the file.
        model: a quantized model, whose content is made when it is asked for.
    """

    def __init__(self, *, model: Any = None, **content: Any) -> None:
        self.quant_method = QuantMethod.QDIT  # pyright: ignore[reportAttributeAccessIssue] - diffusers' own Enum is closed
        self.content = {key: value for key, value in content.items() if key != "quant_method"}
        self.model = model

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return {"quant_method": METHOD, **(self.content if self.model is None else described(self.model))}

    def __repr__(self) -> str:
        return f"QditConfig(format={self.content.get('format', FORMAT)})"


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
    return type(layer) in (nn.Linear, nn.Conv2d)


def packed(model: Any) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """The modules of a quantized model that are no stock ones: as a tree, their tensors, and their paths."""
    quantized = needed(model).quantized
    own = {name: layer for name, layer in sorted(replacements(quantized).items()) if not _stock(layer)}
    nodes, tensors = whole.write(own, model.dtype)
    kinds = {"layers": quantized.layers, "attention": quantized.attention}
    kind_of = {name: kind for kind, names in kinds.items() for name in names}
    return (
        {"modules": [[name, kind_of.get(name, "rewritten"), node] for name, node in nodes.items()]},
        tensors,
        list(own),
    )


def _below(name: str, places: Iterable[str]) -> bool:
    """Whether a tensor's name is below one of the paths of modules."""
    return any(name.startswith(f"{place}.") for place in places)


def read_folder(files: list[Path], content: dict[str, Any]) -> tuple[list[list[Any]], dict[str, Tensor]]:
    """The modules and tensors of a folder's files, after they were compared with each other and with its config.

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
        modules = about["model"]["modules"]
        if {kind for _, kind, _ in modules} - set(KINDS) or not all(isinstance(name, str) for name, *_ in modules):
            raise ValueError("it has modules of an unknown kind")
        problems = contradictions({**content, "model": _claims(modules)})
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise UserError(f"{files[0]} is damaged, or not of qdit ({reason}); {_AGAIN}") from error
    if problems:
        raise UserError(f"{files[0]} contradicts its config.json: {'; '.join(problems[:3])}. Quantize anew")
    return modules, tensors


def _claims(modules: list[list[Any]]) -> dict[str, Any]:
    """The modules as `qdit.checkpoint.claims` reads them."""
    rewritten = [[name, node] for name, kind, node in modules if kind == "rewritten"]
    layers = {name: node for name, kind, node in modules if kind == "layers"}
    attention = {"dict": [[name, node] for name, kind, node in modules if kind == "attention"]}
    # In the order in which a format 1 has them; that a transform was there is seen in its layers alone.
    others = {"attention": attention, "correction": None}
    return {"rewritten": rewritten, "rewrite": None, "layers": layers, "others": others}


class QditQuantizer(DiffusersQuantizer):
    """Saves a model that `qdit.quantize` has quantized, and puts one together again while diffusers loads it."""

    requires_calibration = True  # a folder holds a quantized model; in memory it is qdit.quantize that makes one
    use_keep_in_fp32_modules = False

    def __init__(self, quantization_config: QditConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.config = quantization_config
        self.modules: list[list[Any]] = []
        self.own: list[str] = []
        self.tensors: dict[str, Tensor] = {}
        self.found: list[str] = []
        self.made: tuple[DiffusionModel, Quantized] | None = None

    @property
    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Yes."""
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """No: gradients do not pass the rounding."""
        return False

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What is saved, and the digests of it.

        Raises:
            UserError: a pickle is asked for.
        """
        if not safe_serialization:
            raise UserError("qdit writes no pickle; leave safe_serialization=True")
        tree, tensors, own = packed(self.config.model)
        state = {name: tensor for name, tensor in state_dict.items() if not _below(name, own)} | tensors
        about = {"config": digest(described(self.config.model)), "tensors": tensors_digest(state), "model": tree}
        return state, {METHOD: json.dumps(about | {"digest": digest(about)})}

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what cannot be, before anything is read.

        Raises:
            UserError: accelerate is missing, the folder is of another format, or another dtype is asked for.
        """
        if find_spec("accelerate") is None:
            raise UserError("diffusers reads quantized folders with accelerate: pip install accelerate")
        content = self.config.content
        if content.get("format") != FORMAT:
            raise UserError(
                f"this folder was saved by qdit in format {content.get('format')}, and this qdit reads {FORMAT}; use "
                "the qdit that wrote it, or a newer one"
            )
        if content.keys() != _KEYS or not isinstance(self._dtype(), torch.dtype):
            raise UserError(f"this folder's config.json is damaged, or not of qdit; {_AGAIN}")
        if (wanted := kwargs.get("torch_dtype")) not in (None, saved := self._dtype()):
            raise UserError(f"this model was quantized in {saved}; load it so (torch_dtype={saved}), not in {wanted}")

    def _dtype(self) -> torch.dtype | None:
        base = self.config.content["base"]
        return getattr(torch, str(base.get("dtype")), None) if isinstance(base, dict) else None

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """The dtype that the model was quantized in."""
        found = self._dtype()
        assert found is not None  # `validate_environment` was called before
        return found

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """Read what is ours, compare it with what was saved, and leave the rest to diffusers.

        Raises:
            UserError: the folder is damaged or contradicts itself.
        """
        self.modules, tensors = read_folder([Path(file) for file in checkpoint_files], self.config.content)
        own = [name for name, *_ in self.modules]
        self.tensors = {name: tensor for name, tensor in tensors.items() if _below(name, own)}
        self.own, self.found = own, [key for key in loaded_keys if not _below(key, own)]
        return self.found

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """What diffusers loads by itself."""
        return {name: value for name, value in state_dict.items() if not _below(name, self.own)}

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """What is ours is not missing."""
        return [key for key in missing_keys if not _below(key, self.own)]

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        """Put the quantized modules into the empty network.

        Raises:
            UserError: they cannot be put together, or the network needs tensors that are not there.
        """
        adapter = adapt(model)
        try:
            reader = Reader(self.tensors, torch.device("cpu"), {Clock: adapter.clock})
            made = whole.read(reader, {name: node for name, _, node in self.modules})
            kinds = {kind: {n: made[n] for n, k, _ in self.modules if k == kind} for kind in KINDS}
            policy = Policy.of(self.config.content["policy"])
            quantized = Quantized(policy, kinds["layers"], kinds["attention"], rewrite=Rewrite(kinds["rewritten"]))
            swap(model, made)
        except Reader.WRONG as error:
            raise UserError(
                f"this folder cannot be put together by this version of qdit ({type(error).__name__}: {error}); use "
                "the one that wrote it, or quantize anew"
            ) from error
        missing = [key for key in model.state_dict() if key not in self.found and not _below(key, self.own)]
        if missing:
            raise UserError(f"this folder has no {', '.join(sorted(missing)[:3])}, which the network needs; {_AGAIN}")
        self.tensors, self.modules, self.made = {}, [], (adapter, quantized)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        """Note what is in the network, and let it hear of the time."""
        assert self.made is not None
        (adapter, quantized), content = self.made, self.config.content
        sites = {site.name: site for site in adapter.sites()}
        left = [RunTime(sites[name], *numbers) for name, *numbers in content["run_time"]]
        self.config.model, self.made = model, None
        install(moved(adapter), quantized, left, content["provenance"], self, content["parameters"])

    def dequantize(self, model: Any) -> Any:
        """Put the original back, as `qdit.dequantize` does."""
        from qdit.checkpoint.installed import remove

        remove(model)
        return model
