"""Folders that diffusers reloads with torchao alone: a stock network whose quantized weights are torchao's tensors.

The codes, scales and zero points are qdit's own, so that nothing is rounded twice; what a transform folded into other
layers is in their weights already. diffusers' own `save_pretrained` writes the network, and its `from_pretrained` reads
it where qdit is not installed.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from qdit.checkpoint.installed import Installed, check_without_adapter, needed, replacements
from qdit.errors import UserError
from qdit.exports.forms import Form, form_of
from qdit.exports.kinds import kind_of, shared, why_not
from qdit.nn.linear import QuantLinear

log = logging.getLogger("qdit")
OLDEST = "0.18"
"""The oldest torchao whose files are known to hold all that is written."""
COARSE = (
    "in bfloat16 torchao's Int8Tensor loses 10 to 24 dB against qdit's own sums where inputs are asymmetric, as here: "
    "make the run with dtype=float32, or with activation.grid=symmetric_full"
)


def hindered(forms: Mapping[str, Form], near: bool) -> dict[str, list[str]]:
    """What hinders modules from becoming torchao's, each with the names of those that it hinders; empty: nothing does.

    Args:
        forms: of modules, by name.
        near: see `stock`.
    """
    found: dict[str, list[str]] = {}
    for name, form in forms.items():
        if not form.is_plain and kind_of(form, near) is None:
            found.setdefault(why_not(form, near), []).append(name)
    return found


def incurable(forms: Mapping[str, Form]) -> list[str]:
    """What hinders some forms whatever else is changed, shortly."""
    return list(dict.fromkeys(lack.what for form in forms.values() for lack in shared(form) if not lack.cure))


def stock(model: Any, near: bool = False) -> Any:
    """A stock network of the same class as a quantized one, with torchao's tensors for its weights.

    Args:
        model: a network that `qdit.quantize`, `qdit.load` or diffusers has quantized by qdit; it stays as it is.
        near: whether symmetric inputs may be rounded with torchao's steps, of max / 127.5 instead of max / 127.

    Raises:
        UserError: torchao is missing or too old, has no tensor for a layer (the message names the part that hinders),
            or the model has an adapter in place.
    """
    check_torchao()
    state = needed(model)
    check_without_adapter(model)
    layers = replacements(state.quantized)
    forms = {name: form_of(each) for name, each in layers.items()}
    if found := hindered(forms, near):
        reasons = [
            f"{reason}, which {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''} would need"
            for reason, names in found.items()
        ]
        raise UserError(
            f"this model cannot be exported to torchao: {'; '.join(reasons[:3])}. Export it to diffusers, which holds "
            "every recipe (--to diffusers)"
        )
    if any(_coarse(layer, forms[name], near) for name, layer in layers.items()):
        log.warning(COARSE)
    weights, configs = _weights(state)
    made = _empty(model)
    wanted = made.state_dict().keys()
    values = {name: tensor for name, tensor in model.state_dict().items() if name not in weights}
    if added := [name for name in values if name.endswith(".bias") and name not in wanted]:
        raise UserError(
            f"this model cannot be exported to torchao: a repair or a transform made {added[0]} (one of {len(added)}), "
            "and the original has none. Export it to diffusers, which holds every recipe (--to diffusers)"
        )
    made.load_state_dict({name: (values | weights)[name] for name in wanted}, assign=True)
    _mark(made, configs)
    return made.eval().requires_grad_(False)


def _coarse(layer: nn.Module, form: Form, near: bool) -> bool:
    """Whether a layer becomes an `Int8Tensor` of asymmetric inputs in bfloat16."""
    if not isinstance(layer, QuantLinear) or layer.dtype != torch.bfloat16:
        return False
    kind = None if form.is_plain else kind_of(form, near)
    asymmetric = form.inputs is not None and not form.inputs.symmetric
    return asymmetric and kind is not None and kind.name == "Int8Tensor"


def check_torchao() -> None:
    """Refuse to go on without the torchao that writes what is meant.

    Raises:
        UserError: it is missing, or too old.
    """
    if find_spec("torchao") is None:
        raise UserError("torchao is missing: pip install 'qdit[export]'")
    numbers = [tuple(map(int, text.split(".")[:2])) for text in (version("torchao"), OLDEST)]
    if numbers[0] < numbers[1]:
        raise UserError(f"torchao {version('torchao')} is too old; {OLDEST} or newer is needed: pip install -U torchao")


def _weights(state: Installed) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of the layers that are quantized, by the name of the parameter; and torchao's configs, by layer."""
    tokens = {site.name: site.tokens for site in state.adapter.sites()}
    weights, configs = dict[str, Tensor](), dict[str, Any]()
    for name, layer in state.quantized.layers.items():
        form = form_of(layer)
        if form.is_plain or not isinstance(layer, QuantLinear):
            continue
        kind = kind_of(form, near=True)
        assert kind is not None
        weights[f"{name}.weight"] = kind.make(layer, form, 2 if tokens[name] == 1 else 3)
        configs[name] = kind.config(form)
    return weights, configs


def _empty(model: Any) -> Any:
    """A network of the class and config of another, without values."""
    from accelerate import init_empty_weights

    config = {key: value for key, value in model.config.items() if key != "quantization_config"}
    with init_empty_weights(include_buffers=False):
        return type(model).from_config(config).requires_grad_(False)


def _mark(made: Any, configs: Mapping[str, Any]) -> None:
    """Let diffusers see a network that torchao quantized; one config where all layers have the same, else one each."""
    from diffusers.quantizers.quantization_config import TorchAoConfig
    from diffusers.quantizers.torchao.torchao_quantizer import TorchAoHfQuantizer
    from torchao.quantization import FqnToConfig

    different = {repr(config): config for config in configs.values()}
    one = next(iter(different.values())) if len(different) == 1 else FqnToConfig(OrderedDict(configs))
    quantizer = TorchAoHfQuantizer(TorchAoConfig(one), pre_quantized=True)
    quantizer.offload = False
    made.hf_quantizer, made.is_quantized = quantizer, True
    made.quantization_method = quantizer.quantization_config.quant_method
    made.register_to_config(quantization_config=quantizer.quantization_config)
