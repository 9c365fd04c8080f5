"""The result of a fit: a quantized model, stored as what differs from the full-precision one."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qdit.errors import UserError
from qdit.execution import way
from qdit.model.base import DiffusionModel
from qdit.nn.linear import QuantLinear
from qdit.nn.replace import replaced
from qdit.policies import Policy
from qdit.sampler.hook import Hook
from qdit.transform.base import Rewrite


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a search found.

    Args:
        choice: a group size for each gene; empty if something else was chosen.
        details: plain values for the record.
        curves: for the record, each with x, y, stderr, xlabel and ylabel.
    """

    choice: tuple[int, ...]
    details: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantized:
    """A fitted quantization: the policy and the layers that carry it out."""

    policy: Policy
    layers: dict[str, nn.Module]
    """By linear site."""
    attention: dict[str, nn.Module] = field(default_factory=dict)
    """What rounds the operands of attentions, by the path of the processor that it replaces, and runs."""
    allocation: Allocation | None = None
    """How a search found the policy."""
    rewrite: Rewrite = field(default_factory=Rewrite)
    """The full-precision network whose sites the layers replace."""
    correction: Hook | None = None
    """What the sampler does to the guided output (its `hook`); `installed` does not."""

    @property
    def executed(self) -> str:
        """How the layers multiply now: `int8`, `fp8`, `simulated` (fake quantization), or several where it is mixed.

        Attentions that round their operands are simulated; of a layer that is no `QuantLinear`, its parts are counted.
        Where an engine runs whole networks, its name.
        """
        if way().engine:
            return way().name
        ran = self.layers_by_execution
        kinds = [kind for kind in ("int8", "fp8", "simulated") if kind in ran]
        return ", ".join(kinds + ["simulated"] * (bool(self.attention) and "simulated" not in ran)) or "simulated"

    @property
    def layers_by_execution(self) -> dict[str, int]:
        """How many layers multiply integers, FP8 numbers, or are simulated now, when they are called by themselves."""
        linear = [m for layer in self.layers.values() for m in layer.modules() if isinstance(m, QuantLinear)]
        return dict(Counter(layer.multiplied for layer in linear))

    @contextmanager
    def installed(self, model: DiffusionModel) -> Iterator[DiffusionModel]:
        """`model` with the quantized layers in place; full precision is back afterwards, bit for bit.

        Meanwhile diffusers cannot save the network: it would write rounded weights as if they were the original's.
        """
        networks = [model.denoiser, *(model.denoiser.get_submodule(turn.name) for turn in model.turns())]
        with replaced(model.denoiser, {**self.rewrite.layers, **self.layers, **self.attention}):
            for network in networks:
                vars(network)["save_pretrained"] = _refuse
            try:
                yield model
            finally:
                for network in networks:
                    vars(network).pop("save_pretrained", None)


def _refuse(*_: Any, **__: Any) -> None:
    raise UserError(
        "this network is quantized only for a while, and save_pretrained would write its rounded weights as if they "
        "were the original's; use qdit.checkpoint.checkpoint.save, or qdit.quantize and then save_pretrained"
    )
