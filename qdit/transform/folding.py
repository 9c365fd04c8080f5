"""Folding (fusing) scales, shifts and rotations into a layer and into those that make its input, exactly.

Layers are edited as copies; the model stays as it is. With r the factor of the input channels of a layer W, b = 1 / r:

* the layer's weight becomes W diag(r);
* output rows P that enter the input as they are become diag(b) P, and their bias is multiplied by b (the value rows of
  an attention: its output is linear in them, channel by channel);
* output rows that enter as 1 + output (adaLN's scale γ) change in the same way, and their bias grows by b - 1, because
  b (1 + γ) = 1 + (b γ + b - 1). PTQ4DiT's appendix replaces the literal 1 by b instead, which needs edited model code.

With d added to the input's channels, the layer's bias becomes smaller by W d, and that of output rows which enter the
input as they are becomes larger by d. Where a gate multiplies these rows, no shift folds (`Fold.shifts`).

With R orthogonal on the input channels, the layer's weight becomes W R, and output rows P whose channels may mix become
Rᵀ P.

A layer that was split into W = R + L₁ L₂, with a low-rank branch L₁ L₂, is changed in both terms: L₂ is treated as the
columns of W, L₁ as its rows.

Sums and products are computed in float32 and stored in the layer's own dtype; in half precision the small difference
b - 1 + bγ keeps the absolute, not the relative, precision of 1 + γ.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qdit.model.base import DiffusionModel, Fold, Site, Source
from qdit.nn.basis import Branch, Rotation, Scale, Shift
from qdit.nn.linear import QuantLinear
from qdit.nn.patches import matrix
from qdit.transform.base import Folded, Rewrite, Transform
from qdit.transform.inputs import Input, carriers_of, chosen_inputs, fold_of, role_problems


class Draft:
    """Float32 copies of a model's weights and biases that transforms edit; the model stays as it is."""

    def __init__(self, model: DiffusionModel) -> None:
        self.model = model
        self.weights: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor | None] = {}
        self.inputs: dict[str, nn.Module] = {}
        self.branches: dict[str, tuple[Tensor, Tensor]] = {}
        """L₁ [out, rank] and L₂ [rank, channels] of the layers that were split; `weight` has the rest."""
        self.folded: dict[tuple[str, ...], Folded] = {}
        """What sources make of inputs, by the inputs' readers."""

    def weight(self, name: str) -> Float[Tensor, "out channels"]:
        """The copy of a layer's weight, made when first asked for."""
        if name not in self.weights:
            layer = self.model.denoiser.get_submodule(name)
            bias = layer.bias
            assert bias is None or isinstance(bias, Tensor)
            self.weights[name] = matrix(layer).float().clone()
            self.biases[name] = None if bias is None else bias.detach().float().clone()
        return self.weights[name]

    def split(self, name: str, up: Float[Tensor, "out rank"], down: Float[Tensor, "rank channels"]) -> None:
        """Move `up` @ `down`, as cast to the layer's dtype, from its weight to its low-rank branch (added to it)."""
        up, down = (part.to(self.model.device, self.model.dtype, copy=True).float() for part in (up, down))
        self.weight(name).sub_(up @ down)
        if name in self.branches:
            own_up, own_down = self.branches[name]
            up, down = torch.cat([own_up, up], 1), torch.cat([own_down, down])
        self.branches[name] = up, down

    def scale_columns(self, name: str, by: Float[Tensor, " channels"]) -> None:
        """Multiply a layer's input channels: W diag(by)."""
        self._each_row(name, lambda rows: rows * by)

    def shift_columns(self, name: str, by: Float[Tensor, " channels"]) -> None:
        """Change the bias so that the layer, given x + by, computes what it computed of x."""
        weight, bias = self.weight(name), self.biases[name]
        change = weight @ by
        if name in self.branches:
            up, down = self.branches[name]
            change += up @ (down @ by)
        self.biases[name] = -change if bias is None else bias - change

    def rotate_columns(self, name: str, rotate: Callable[[Tensor], Tensor]) -> None:
        """Rotate a layer's input channels: W R, where `rotate` computes x R of rows x."""
        self._each_row(name, rotate)

    def _each_row(self, name: str, change: Callable[[Tensor], Tensor]) -> None:
        """Change the rows of a layer's weight, and those of its branch that read the same input."""
        self.weights[name] = change(self.weight(name))
        if name in self.branches:
            up, down = self.branches[name]
            self.branches[name] = up, change(down)

    def rotate_output(self, fold: Fold, width: int, rotate: Rotation) -> None:
        """Fold a rotation into sources of `width` channels: they give x R instead of x; all rows must be plain."""
        self._note(fold, rotate)
        for source in fold.sources:
            assert not source.one_plus, f"{source.layer} modulates; it cannot mix channels"
            weight, bias = self.weight(source.layer), self.biases[source.layer]
            for start in source.linear:
                rows = slice(start, start + width)
                for part in (weight, *self._outer(source.layer)):
                    part[rows] = rotate(part[rows].T).T
                if bias is not None:
                    bias[rows] = rotate(bias[rows])

    def at_run_time(self, name: str, change: nn.Module) -> None:
        """Let a layer change its own input, after earlier changes; all readers of one input are given one module."""
        before = self.inputs.get(name)
        self.inputs[name] = change if before is None else nn.Sequential(before, change)

    def scale_output(self, fold: Fold, by: Float[Tensor, " channels"]) -> None:
        """Fold a factor `by` of the input's channels into its sources."""
        self._note(fold, Scale(1 / by, by.dtype))
        for source in fold.sources:
            self._scale_rows(source, by)

    def _note(self, fold: Fold, step: nn.Module) -> None:
        """Note what is folded, for what is added beside the layers later."""
        before = self.folded.get(fold.readers, Folded(fold, ()))
        self.folded[fold.readers] = Folded(fold, (*before.steps, step))

    def _scale_rows(self, source: Source, by: Float[Tensor, " channels"]) -> None:
        weight, bias = self.weight(source.layer), self._bias(source.layer)
        for start in (*source.linear, *source.one_plus):
            rows = slice(start, start + len(by))
            for part in (weight, *self._outer(source.layer)):
                part[rows] *= by[:, None]
            bias[rows] *= by
        for start in source.one_plus:
            bias[start : start + len(by)] += by - 1

    def shift_output(self, fold: Fold, by: Float[Tensor, " channels"]) -> None:
        """Fold a shift into sources: they give x + by instead of x; one range of rows of each must be plain."""
        self._note(fold, Shift(by, by.dtype))
        for source in fold.sources:
            start = source.linear[0]
            self._bias(source.layer)[start : start + len(by)] += by

    def _bias(self, name: str) -> Float[Tensor, " out"]:
        """The copy of a layer's bias, zeros where it had none."""
        weight = self.weight(name)
        bias = self.biases[name]
        if bias is None:
            bias = self.biases[name] = weight.new_zeros(len(weight))
        return bias

    def _outer(self, name: str) -> tuple[Tensor, ...]:
        """The factors of a layer's low-rank branch that have a row for each output channel; none without a branch."""
        return self.branches[name][:1] if name in self.branches else ()

    def rewrite(self) -> Rewrite:
        """The edited layers, in the model's dtypes; a draft can be used once, as it frees its copies one by one."""
        layers = {name: self._layer(name) for name in list(self.weights)}
        return Rewrite(layers, dict(self.inputs), folded=tuple(self.folded.values()))

    def _layer(self, name: str) -> nn.Module:
        layer = deepcopy(self.model.denoiser.get_submodule(name))
        weight, bias = layer.weight, self.biases[name]
        assert isinstance(weight, Tensor)
        made = self.weights.pop(name).view_as(weight).to(weight.dtype)
        layer.weight = nn.Parameter(made, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
        if name in self.branches:
            layer.branch = Branch(*self.branches.pop(name), self.inputs.get(name), weight.dtype)
        elif name not in self.inputs:
            return layer
        return QuantLinear(layer, None, self.inputs.get(name)).eval()


class Step(Transform, Protocol):
    """A transform that can be one of several: it makes one weight of a layer's weight."""

    def edit(self, draft: Draft, sites: list[Site], measured: dict[str, Tensor]) -> None:
        """Transform the layers of a draft, in which another transform may have been before."""
        ...


@dataclass(frozen=True, kw_only=True)
class Drafted(ABC):
    """Base of the simple transforms, which edit a `Draft` (see `Step`).

    Args:
        name: what tables call it.
        roles: of the sites that are transformed, if they are quantized (see `qdit.model.roles.ROLES`); sites of
            cross-attention and of a text go with those that they are like (`KIN`).
    """

    shifting: ClassVar[bool] = False
    """Whether inputs are shifted, which not every fold takes."""

    name: str
    roles: list[str]

    @property
    def parts(self) -> dict[str, Self]:
        """See `Transform`."""
        return {self.name: self}

    def bases(self, role: str) -> int:
        """See `Transform`: one."""
        return 1

    def problems(self, sites: list[Site]) -> list[str]:
        """See `Transform`."""
        return role_problems(self.roles, sites)

    def inputs(self, model: DiffusionModel, sites: list[Site]) -> list[Input]:
        """The inputs that are transformed, in forward order."""
        return chosen_inputs(model, sites, self.roles)

    def carriers(self, model: DiffusionModel, sites: list[Site]) -> dict[str, str | None]:
        """See `Transform`: what is done to an input's channels is folded into its sources, if a fold makes it."""
        return carriers_of({each: self.fold(model, each) for each in self.inputs(model, sites)})

    def fold(self, model: DiffusionModel, read: Input) -> Fold | None:
        """The fold that takes what is done to an input, if there is one."""
        found = fold_of(model, read)
        return None if found is not None and self.shifting and not found.shifts else found

    @abstractmethod
    def edit(self, draft: Draft, sites: list[Site], measured: dict[str, Tensor]) -> None:
        """See `Step`."""

    def rewrite(self, model: DiffusionModel, sites: list[Site], measured: dict[str, Tensor]) -> Rewrite:
        """See `Transform`."""
        draft = Draft(model)
        self.edit(draft, sites, measured)
        return draft.rewrite()
