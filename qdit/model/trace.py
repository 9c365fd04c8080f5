"""One forward pass of a network, noted: its linear layers, what they read, and the shapes of its attentions.

On the meta device, which has shapes and no memory, FLUX.1's 12 B parameters take seconds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LINEAR = (nn.Linear, nn.Conv2d, nn.Conv3d)


@dataclass
class Call:
    """The first use of a layer."""

    name: str
    layer: nn.Module
    reads: int
    """Which tensor: the number of the first call that read it."""
    rows: int
    """Of its input, seen as a matrix; of one sample."""


@dataclass
class Trace:
    """What one forward pass of one sample did, in order."""

    calls: list[Call] = field(default_factory=list)
    products: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    """Attention's path, queries and keys [copies, heads, tokens, channels]."""


class _Products(TorchFunctionMode):
    """Notes every `scaled_dot_product_attention` with the attention module that is at work."""

    def __init__(self, trace: Trace, at_work: list[str]) -> None:
        super().__init__()
        self.trace, self.at_work = trace, at_work

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and self.at_work:
            q, k = (args[n] if len(args) > n else kwargs[key] for n, key in enumerate(("query", "key")))
            self.trace.products.append((self.at_work[-1], q, k))
        return func(*args, **kwargs)


@torch.no_grad()
def trace(shell: nn.Module, call: Callable[[nn.Module], Any]) -> Trace:
    """Run a network once and note its linear layers and attentions.

    Args:
        shell: the network; on the meta device nothing is computed.
        call: calls it with the inputs of one sample.
    """
    found, at_work = Trace(), []
    used: set[str] = set()
    inputs: dict[int, tuple[int, Tensor]] = {}  # the tensors are kept, for else another one might get an id

    def reading(name: str) -> Callable:
        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if name in used:
                return
            used.add(name)
            x = args[0] if args else next(iter(kwargs.values()))
            reads, _ = inputs.setdefault(id(x), (len(found.calls), x))
            found.calls.append(Call(name, layer, reads, _rows(layer, x)))

        return hook

    def leaving(*_: Any) -> None:
        at_work.pop()

    handles = []
    for name, module in shell.named_modules():
        if isinstance(module, LINEAR) and getattr(module, "groups", 1) == 1:
            handles.append(module.register_forward_pre_hook(reading(name), with_kwargs=True))
        elif hasattr(module, "to_q") or hasattr(module, "to_qkv_mlp_proj"):
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: at_work.append(name)))
            handles.append(module.register_forward_hook(leaving))
    try:
        with _Products(found, at_work):
            call(shell)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _rows(layer: Any, x: Tensor) -> int:
    """Rows of a layer's input as a matrix: of a convolution, its places."""
    if isinstance(layer, nn.Linear):
        return x.numel() // layer.in_features
    return x.numel() // (layer.in_channels * math.prod(layer.kernel_size))
