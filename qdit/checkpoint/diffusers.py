"""Folders that diffusers reads and writes: `pipe.save_pretrained("mine")`, `DiTPipeline.from_pretrained("mine")`.

`config.json` says under `quantization_config` what the folder holds: `format`, the `policy` of every site, and where it
comes from. The safetensors file has the codes packed at their bits, scales, zero points, and whatever stayed in full
precision, by module path; its header says what modules they make (`qdit.checkpoint.whole`), and has digests of
everything, with which no two files of different saves go together. Unlike format 1 (`qdit.checkpoint.checkpoint`) it
needs no base model: it is read wherever qdit is imported. As there, nothing is unpickled, the classes are those of
`qdit.checkpoint.known`, and what the policy says is compared with what the layers hold.
"""

import json
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor

from qdit.checkpoint import whole
from qdit.checkpoint.folder import AGAIN, FOLDED, FORMAT, KEYS, KINDS, below, described, folds_of, packed, read_folder
from qdit.checkpoint.installed import check_without_adapter, install
from qdit.checkpoint.on_import import METHOD
from qdit.checkpoint.serialize import Reader
from qdit.errors import UserError
from qdit.ledger import RunTime
from qdit.model.adapter import adapt, moved
from qdit.model.base import DiffusionModel
from qdit.model.loaded import FACTS
from qdit.nn.clock import Clock
from qdit.nn.replace import put
from qdit.policies import Policy
from qdit.quantized import Quantized
from qdit.storage.digest import digest
from qdit.storage.tensors import tensors_digest
from qdit.transform import Rewrite


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


class QditQuantizer(DiffusersQuantizer):
    """Saves a model that `qdit.quantize` has quantized, and puts one together again while diffusers loads it."""

    requires_calibration = True  # a folder holds a quantized model; in memory it is qdit.quantize that makes one
    use_keep_in_fp32_modules = False

    def __init__(self, quantization_config: QditConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.config = quantization_config
        self.tree: dict[str, Any] = {}
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
            UserError: a pickle is asked for, or an adapter is in place.
        """
        if not safe_serialization:
            raise UserError("qdit writes no pickle; leave safe_serialization=True")
        check_without_adapter(self.config.model)
        tree, tensors, own = packed(self.config.model)
        state = {name: tensor for name, tensor in state_dict.items() if not below(name, own)} | tensors
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
        if content.keys() != KEYS or not isinstance(self._dtype(), torch.dtype):
            raise UserError(f"this folder's config.json is damaged, or not of qdit; {AGAIN}")
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
        self.tree, tensors = read_folder([Path(file) for file in checkpoint_files], self.config.content)
        own = [*(name for name, *_ in self.tree["modules"]), FOLDED]
        self.tensors = {name: tensor for name, tensor in tensors.items() if below(name, own)}
        self.own, self.found = own, [key for key in loaded_keys if not below(key, own)]
        return self.found

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """What diffusers loads by itself."""
        return {name: value for name, value in state_dict.items() if not below(name, self.own)}

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """What is ours is not missing."""
        return [key for key in missing_keys if not below(key, self.own)]

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        """Put the quantized modules into the empty network.

        Raises:
            UserError: they cannot be put together, or the network needs tensors that are not there.
        """
        about = self.config.content["provenance"]
        facts = {key: about.get(key) for key in FACTS} if isinstance(about, dict) else {}
        sizes = {key: value for key, value in facts.items() if isinstance(value, int) and 1 <= value <= 4096}
        adapter = adapt(model, **sizes)
        try:
            reader = Reader(self.tensors, torch.device("cpu"), {Clock: adapter.clock})
            modules = self.tree["modules"]
            made = whole.read(reader, {name: node for name, _, node in modules})
            kinds = {kind: {n: made[n] for n, k, _ in modules if k == kind} for kind in KINDS}
            folded = folds_of(self.tree.get(FOLDED), self.tensors, torch.device("cpu"))
            policy = Policy.of(self.config.content["policy"])
            rewrite = Rewrite(kinds["rewritten"], folded=folded)
            quantized = Quantized(policy, kinds["layers"], kinds["attention"], rewrite=rewrite)
            put(model, made)
        except Reader.WRONG as error:
            raise UserError(
                f"this folder cannot be put together by this version of qdit ({type(error).__name__}: {error}); use "
                "the one that wrote it, or quantize anew"
            ) from error
        missing = [key for key in model.state_dict() if key not in self.found and not below(key, self.own)]
        if missing:
            raise UserError(f"this folder has no {', '.join(sorted(missing)[:3])}, which the network needs; {AGAIN}")
        self.tensors, self.tree, self.made = {}, {}, (adapter, quantized)

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
