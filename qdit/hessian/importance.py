"""The importance of layer outputs: the diagonal of a loss's Hessian with respect to each entry of a layer's output.

Near full precision a loss grows by ½ Δzᵀ H Δz with the change Δz of a layer's output; the diagonal of H is estimated by
the squared gradient g² of a target (TQ-DiT, arXiv 2502.04056, eq. 13-17). One backward pass per probe through the
full-precision network, `TOKENS` tokens at a time, gives it for all layers. Of a layer's g² only its mean for each row
(point and token) and its mean for each channel are kept, whose product approximates it as in Adafactor (arXiv
1804.04235); all layers together then need less memory than one layer's g² would. The release stores each entry, and
runs the network anew for each layer; weight ranges that it chooses from 2,048 rows are no better on other rows
(experiments/tq_dit/importance.py). For an attention the same is kept of its output before the last linear layer, by
head; the importance of its scores follows from that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qdit.calibration import CalibrationData
from qdit.calibration.observers import outputs
from qdit.execution import repeatable
from qdit.model.base import Attention, DiffusionModel, Site
from qdit.nn.patches import patch_size

TOKENS = 1024  # in one backward pass, which holds all their activations at once: 4 points of DiT-XL/2


@dataclass(frozen=True)
class Importance:
    """The mean squared gradient of an output, on the CPU; of an attention's output by head."""

    rows: Float[Tensor, "points *heads tokens"]
    """Over channels."""
    channels: Float[Tensor, "*heads out"]
    """Over rows."""
    others: tuple["Importance", ...] = ()
    """Of the further tensors that a block of a joint attention returns."""

    @property
    def parts(self) -> tuple["Importance", ...]:
        """Of each tensor."""
        return self, *self.others

    @property
    def vanishes(self) -> bool:
        """Whether the prediction ignores all of them."""
        return all(bool(part.rows.mean() == 0) for part in self.parts)


class Gradient(ABC):
    """Base of a loss whose squared gradients weigh errors. Config only."""

    @abstractmethod
    def points(self, model: DiffusionModel, data: CalibrationData, seed: int) -> CalibrationData:
        """The points at which gradients are taken: as many, at the same times, of the same classes."""

    @abstractmethod
    def slopes(
        self, output: Float[Tensor, "B C h w"], points: Int[Tensor, " B"], seed: int
    ) -> Iterator[Float[Tensor, "B C h w"]]:
        """The target's gradient with respect to the predicted noise, for each probe.

        Args:
            output: the predicted noise.
            points: indices of the points; random draws depend on them and on `seed` alone.
            seed: of the random streams.
        """

    def importances(
        self,
        model: DiffusionModel,
        data: CalibrationData,
        sites: Sequence[Site],
        seed: int,
        attentions: Sequence[Attention] = (),
    ) -> dict[str, Importance]:
        """See `output_importances`."""
        return output_importances(model, data, sites, self, seed, attentions)


def output_importances(
    model: DiffusionModel,
    data: CalibrationData,
    sites: Sequence[Site],
    target: Gradient,
    seed: int,
    attentions: Sequence[Attention] = (),
) -> dict[str, Importance]:
    """The importance of each site's output, and of each attention's, by name; 0 where the prediction ignores it.

    Args:
        model: the network in full precision. Of its output only the predicted noise counts.
        data: the calibration points.
        sites: whose outputs; the first call counts of a site that runs several times.
        target: whose gradient.
        seed: of its random streams.
        attentions: whose products probs v, all heads side by side, count as well.
    """
    layers = {site.name: model.denoiser.get_submodule(site.name) for site in sites}
    images = {name: patch_size(layer) is not None for name, layer in layers.items()}
    heads: dict[str, int | None] = {attention.name: attention.heads for attention in attentions}
    found: dict[str, list[_Squares]] = {name: [] for name in (*images, *heads)}
    first, data = 0, replace(target.points(model, data, seed), batch_size=points_at_once(model))
    for x, t, y in data.batches(model):
        both = outputs(model.denoiser, list(layers)), _mixed(model.denoiser, [a.name for a in attentions])
        with torch.enable_grad(), repeatable(model.device), both[0] as seen, both[1] as mixed:
            output = model.denoise(x, t, y)[:, : x.shape[1]].float()
            nodes = {name: seen[name] if name in seen else [mixed[name]] for name in found}
            for name, own in found.items():
                own += [
                    _Squares(images=images.get(name, False), heads=heads.get(name)) for _ in nodes[name][len(own) :]
                ]
            flat = [node for own in nodes.values() for node in own]
            slopes = list(target.slopes(output.detach(), torch.arange(first, first + len(x)), seed))
            for n, slope in enumerate(slopes):
                keep = n + 1 < len(slopes)
                got = torch.autograd.grad(output, flat, slope, retain_graph=keep, materialize_grads=True)
                for squares, gradient in zip((each for own in found.values() for each in own), got, strict=True):
                    squares.add(gradient, n, len(slopes))
        first += len(x)
    return {name: _together([squares.value() for squares in own]) for name, own in found.items()}


def _together(parts: Sequence[Importance]) -> Importance:
    return replace(parts[0], others=tuple(parts[1:]))


def even_importances(points: int, sites: Sequence[Site], attentions: Sequence[Attention]) -> dict[str, Importance]:
    """The importances that weigh nothing, for so many calibration points."""
    found = {s.name: Importance(torch.ones(points, s.tokens), torch.ones(s.out_features)) for s in sites}
    for a in attentions:
        rows = torch.ones(points * a.copies, a.heads, a.tokens)
        found[a.name] = Importance(rows, torch.ones(a.heads, a.head_dim))
    return found


def points_at_once(model: DiffusionModel) -> int:
    """How many points go through one backward pass."""
    return max(1, TOKENS // max(site.tokens for site in model.sites()))


class _Outputs(TorchFunctionMode):
    """Captures the output of each attention's first product with the probabilities, as a node of the graph."""

    def __init__(self, seen: dict[str, Tensor]) -> None:
        super().__init__()
        self.seen = seen
        self.at_work: str | None = None

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is not F.scaled_dot_product_attention or self.at_work is None or self.at_work in self.seen:
            return output
        node = output if output.requires_grad else output.detach().requires_grad_()
        self.seen[self.at_work] = node
        return node

    def begin(self, name: str, *_: Any) -> None:
        """An attention is at work from now on."""
        self.at_work = name

    def end(self, *_: Any) -> None:
        """None is."""
        self.at_work = None


@contextmanager
def _mixed(network: nn.Module, attentions: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Capture attentions' outputs [B, heads, tokens, out] in the next forward pass, by name, before any last layer.

    In a joint attention image and text go through last layers of their own; here they are together.
    """
    mode = _Outputs({})
    handles = []
    for name in attentions:
        attention = network.get_submodule(name)
        handles.append(attention.register_forward_pre_hook(partial(mode.begin, name)))
        handles.append(attention.register_forward_hook(mode.end, always_call=True))
    try:
        with mode:
            yield mode.seen
    finally:
        for handle in handles:
            handle.remove()


class _Squares:
    """Means of squared gradients, over probes too.

    Args:
        images: gradients are [B, out, h, w], not [B, ..., out].
        heads: of an attention, whose gradients are [B, heads, tokens, out].
    """

    def __init__(self, *, images: bool = False, heads: int | None = None) -> None:
        self.images, self.heads = images, heads
        self.rows: list[Tensor] = []
        self.channels: Tensor | None = None
        self.seen = 0

    def add(self, gradient: Tensor, probe: int, probes: int) -> None:
        """Take in a probe's gradient."""
        gradient = gradient if self.heads is None else gradient.transpose(1, 2).flatten(2)
        tokens = (gradient.flatten(2).mT if self.images else gradient).float().square().div_(probes)
        squares = tokens.reshape(len(gradient), -1, self.heads or 1, tokens.shape[-1] // (self.heads or 1))
        rows, channels = squares.mean(-1).transpose(1, 2).cpu(), squares.sum((0, 1), dtype=torch.float64).cpu()
        if probe:
            self.rows[-1] += rows
        else:
            self.rows.append(rows)
            self.seen += rows[:, 0].numel()
        self.channels = channels if self.channels is None else self.channels + channels

    def value(self) -> Importance:
        """The means."""
        assert self.channels is not None, "no point was seen"
        rows, channels = torch.cat(self.rows), (self.channels / self.seen).float()
        return Importance(rows, channels) if self.heads is not None else Importance(rows[:, 0], channels[0])
