"""A quantization that stays in a network until it is taken out: what `qdit.quantize` does to a transformer.

The state lies in the network itself, so that a copy of the network has its own. While it is there diffusers sees a
quantized model (`hf_quantizer`, `config.quantization_config`), and so saves it as one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from qdit.errors import UserError
from qdit.ledger import RunTime
from qdit.model.adapter import Listener
from qdit.model.base import DiffusionModel
from qdit.nn.replace import put
from qdit.quantized import Quantized

STATE = "_qdit"
NO_FUSING = (
    "an adapter (LoRA) cannot be fused into a quantized weight, whose codes would have to be rounded anew: leave it "
    "beside the model, or load and fuse it in full precision, and quantize that"
)


@dataclass
class Installed:
    """What is known of a network that is quantized."""

    adapter: DiffusionModel
    quantized: Quantized
    run_time: list[RunTime]
    """What a transform left to be done to inputs."""
    parameters: int
    """Of the network in full precision."""
    about: dict[str, Any]
    """Where it comes from, as plain values."""
    originals: dict[str, Any] | None
    """What was replaced, by path; None where the network was read from a folder, and there is no original."""
    hooks: list[RemovableHandle]


def state_of(model: Any) -> Installed | None:
    """The state of a network that is quantized; None for any other."""
    return vars(model).get(STATE) if isinstance(model, nn.Module) else None


def needed(model: Any) -> Installed:
    """The state of a network that is quantized.

    Raises:
        UserError: it is not.
    """
    if (state := state_of(model)) is None:
        advice = "; give its transformer, pipe.transformer" if hasattr(model, "transformer") else ""
        raise UserError(f"this {type(model).__name__} is not quantized by qdit: see qdit.quantize{advice}")
    return state


def replacements(quantized: Quantized) -> dict[str, nn.Module]:
    """Every module that stands in a quantized network in the place of another, by path."""
    return {**quantized.rewrite.layers, **quantized.layers, **quantized.attention}


def install(
    adapter: DiffusionModel,
    quantized: Quantized,
    run_time: list[RunTime],
    about: dict[str, Any],
    quantizer: Any,
    parameters: int | None = None,
) -> None:
    """Put a quantization into the adapter's network.

    Args:
        adapter: of the network, in full precision, or with the quantized layers in it already.
        quantized: what is put into it.
        run_time: see `Installed`.
        about: see `Installed`.
        quantizer: diffusers' quantizer, which saves it.
        parameters: of the network in full precision if the quantized layers are in it already; None if they are not.
    """
    model: Any = adapter.denoiser
    originals = None
    if parameters is None:
        parameters = sum(p.numel() for p in model.parameters())
        originals = put(model, replacements(quantized))
    hooks = Listener(adapter.clock, adapter.null_class, adapter.time_unit).listen(model)
    vars(model)[STATE] = Installed(adapter, quantized, run_time, parameters, about, originals, hooks)
    mark(model, quantizer)


def check_without_adapter(model: Any) -> None:
    """Refuse a network in which an adapter is in place.

    Raises:
        UserError: naming the layer.
    """
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            raise UserError(
                f"{name} has an adapter (LoRA) in place, which is not part of the quantized model: unload it first "
                "(pipe.unload_lora_weights(), or what your peft model calls unload())"
            )


def _refuse_fusing(*_: Any, **__: Any) -> None:
    raise UserError(NO_FUSING)


def mark(model: Any, quantizer: Any) -> None:
    """Let diffusers see a quantized model."""
    if hasattr(type(model), "fuse_lora"):
        vars(model)["fuse_lora"] = _refuse_fusing  # before the first layer is touched
    model.hf_quantizer, model.is_quantized = quantizer, True
    model.quantization_method = quantizer.quantization_config.quant_method
    model.register_to_config(quantization_config=quantizer.quantization_config)


def unmark(model: Any) -> Any:
    """Let diffusers see an ordinary model; the quantizer that it had."""
    from diffusers.configuration_utils import FrozenDict

    quantizer = model.hf_quantizer
    vars(model).pop("fuse_lora", None)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        delattr(model, name)
    model._internal_dict = FrozenDict({k: v for k, v in model.config.items() if k != "quantization_config"})
    return quantizer


def _originals(model: Any) -> dict[str, Any]:
    """What was replaced in a quantized network, brought to where the network is.

    Raises:
        UserError: the network is not quantized, has no originals, or has an adapter in place.
    """
    check_without_adapter(model)
    if (originals := needed(model).originals) is None:
        raise UserError(
            "this model was read from a folder that qdit saved, which holds no full-precision weights: load the "
            "pipeline that it was made of"
        )
    return {k: v.to(model.device) if isinstance(v, nn.Module) else v for k, v in originals.items()}


@contextmanager
def full_precision(model: Any) -> Iterator[Any]:
    """The original network, bit for bit, while the context lasts."""
    quantized = put(model, _originals(model))
    quantizer, state = unmark(model), vars(model).pop(STATE)
    try:
        yield model
    finally:
        put(model, quantized)
        vars(model)[STATE] = state
        mark(model, quantizer)


def remove(model: Any) -> None:
    """Put the original network back for good."""
    put(model, _originals(model))
    unmark(model)
    for hook in vars(model).pop(STATE).hooks:
        hook.remove()
