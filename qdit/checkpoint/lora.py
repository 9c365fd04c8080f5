"""Adapters (LoRA, arXiv 2106.09685) on a network that qdit quantized, by peft, which diffusers uses for them, too.

peft puts a layer of its own around each target: W x + s B A x. The quantized product stays what it is; A and B stay in
floating point and read the input before it is rounded. Three things are qdit's own:

* peft has to be told that qdit's layers are linear;
* where a transform is folded into the layers that make an input, its channels are no longer the original's, in which A
  and B were trained. A is changed as the columns of the readers' weights were, B as the rows of the sources'
  (`qdit.transform.base.Folded`), so that the branch adds what it adds to the original;
* a quantized weight takes up no branch: fusing is refused.

Left out: variants that need the norm of the original weight, or change it (DoRA, PiSSA, …), and convolutions.
"""

from collections.abc import Sequence
from copy import copy, deepcopy
from functools import cache
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qdit.checkpoint.installed import NO_FUSING, needed, state_of
from qdit.errors import UserError
from qdit.nn.basis import Scale, Shift
from qdit.nn.linear import QuantLinear
from qdit.nn.patches import patch_size
from qdit.nn.switch import TimedLinear
from qdit.transform.base import Folded

STARTS = (True, False, "gaussian")
"""How peft may initialize a branch: other ways change the weight beside it."""


class Channels(nn.Module):
    """In what channels a quantized network's layer works: how a branch of the original is changed to stand beside it.

    Args:
        columns: what was done to the columns of its weight, in order.
        rows: what was done to ranges of its output rows: the first row of each range, and the steps.
    """

    def __init__(self, columns: Sequence[nn.Module], rows: Sequence[tuple[int, Sequence[nn.Module]]]) -> None:
        super().__init__()
        self.columns = nn.ModuleList(deepcopy(columns))
        self.starts, self.rows = (
            [start for start, _ in rows],
            nn.ModuleList(nn.ModuleList(deepcopy(s)) for _, s in rows),
        )

    @classmethod
    def of(cls, name: str, folded: Sequence[Folded]) -> "Channels":
        """The channels of a layer, by its path, in a network with these folds."""
        reads = [step for each in folded if name in each.fold.readers for step in each.steps]
        makes = [(source, each.steps) for each in folded for source in each.fold.sources if source.layer == name]
        return cls(reads, [(start, steps) for s, steps in makes for start in (*s.linear, *s.one_plus)])

    def down(self, a: Float[Tensor, "rank in"]) -> tuple[Float[Tensor, "rank in"], Float[Tensor, " rank"] | None]:
        """A for the changed input, and what is to be added because the input was shifted."""
        offset = None
        for step in self.columns:
            if isinstance(step, Shift):
                shifted = a @ step.by.to(a)
                offset = -shifted if offset is None else offset - shifted
            else:
                a = step(a).to(a.dtype)
        return a, offset

    def up(self, b: Float[Tensor, "out *rank"]) -> Float[Tensor, "out *rank"]:
        """B for the changed output, or a bias beside it."""
        b = b.clone() if self.starts else b
        for start, steps in zip(self.starts, self.rows, strict=True):
            for step in steps:  # pyright: ignore[reportGeneralTypeIssues] - a list of modules
                if isinstance(step, Scale):
                    rows = slice(start, start + len(step.by))
                    b[rows] = (b[rows].movedim(0, -1) / step.by.to(b)).movedim(-1, 0)
                elif not isinstance(step, Shift):
                    rows = slice(start, start + len(step.signs))
                    b[rows] = step(b[rows].movedim(0, -1)).movedim(-1, 0).to(b.dtype)
        return b


class Branched:
    """What peft's layer does otherwise around a quantized one; goes before `peft.tuners.lora.Linear`."""

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        """Those of a branch that need nothing of the weight beside it: the plain one."""
        return {(): None}

    def resolve_lora_variant(self: Any, *, config: Any, **kwargs: Any) -> None:
        """No variant.

        Raises:
            UserError: one is asked for.
        """
        plain = not config.use_dora and config.init_lora_weights in STARTS
        try:
            if plain:
                return super().resolve_lora_variant(config=config, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        except ValueError:  # peft's word for a combination that `lora_variants` has not
            pass
        raise UserError(
            f"a quantized model takes plain LoRA only, and this adapter has use_dora={config.use_dora}, "
            f"init_lora_weights={config.init_lora_weights} or another variant that needs the original's weights: put "
            "it into the model in full precision, fuse it, and quantize that"
        )

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        """Width of the input and of the output."""
        return module.weight.shape[1], module.weight.shape[0]

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Refuse.

        Raises:
            UserError: always.
        """
        raise UserError(NO_FUSING)

    def forward(self: Any, x: Float[Tensor, "*rows in"], *args: Any, **kwargs: Any) -> Float[Tensor, "*rows out"]:
        """The layer's output, and those of the active branches for the input before it is rounded."""
        if getattr(self, "channels", None) is None:  # the original's
            return super().forward(x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        made: Tensor = self.base_layer(x)
        found = made
        for name in () if self.disable_adapters else self.active_adapters:
            if name in self.lora_A:
                found = found + self.added(name, x)
        return found.to(made.dtype)

    def added(self: Any, name: str, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """What the branch of one adapter adds."""
        down, up = self.lora_A[name], self.lora_B[name]
        x = self.lora_dropout[name](self._cast_input_dtype(x, down.weight.dtype))
        bias = None if up.bias is None else self.channels.up(up.bias)
        inner = F.linear(x, *self.channels.down(down.weight))
        return F.linear(inner, self.channels.up(up.weight), bias) * self.scaling[name]


class KnowsQdit:
    """Puts adapters into a network that qdit quantized, and into others as ever; goes before `peft`'s `LoraModel`."""

    def _create_and_replace(
        self: Any,
        lora_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        **about: Any,
    ) -> None:
        """Around one layer."""
        own, given = super(), (adapter_name, target, target_name, parent, current_key)
        if state_of(self.model) is None or hasattr(target, "base_layer"):
            return own._create_and_replace(lora_config, *given, **about)  # pyright: ignore[reportAttributeAccessIssue]
        if (folded := needed(self.model).quantized.rewrite.folded) is None:
            raise UserError(
                "this folder was saved by an earlier qdit, and does not say what was folded into its layers, so that "
                "an adapter could not be put beside them: quantize the model anew"
            )
        if patch_size(target) is not None:
            raise UserError(
                f"{current_key} is a patch embedding, and takes no adapter in a quantized model; leave it out"
            )
        config = copy(lora_config)  # the caller may use it for other networks
        config._custom_modules = None
        config._register_custom_module(dict.fromkeys((QuantLinear, TimedLinear, nn.Linear), branched()))
        own._create_and_replace(config, *given, **about)  # pyright: ignore[reportAttributeAccessIssue]
        channels = Channels.of(current_key, folded)
        if channels.starts or len(channels.columns):
            getattr(parent, target_name).channels = channels.to(target.weight.device)


@cache
def branched() -> type:
    """The layer that peft puts around a linear one in a quantized network."""
    from peft.tuners.lora import Linear

    return type("BranchedLinear", (Branched, Linear), {})


@cache
def tuner() -> type:
    """The class that peft puts LoRA into networks with."""
    from peft.tuners.lora import LoraModel

    return type("QditLoraModel", (KnowsQdit, LoraModel), {})
