"""Inputs and targets of the units: two walks through the network, one in full precision and one as quantized so far.

The full-precision walk gives the targets, the quantized one the inputs. The activations of both are kept at the block
boundary that was reached, so that the inputs and targets of all units together cost two passes of the calibration data.
PTQ4DiT's release runs the network from its input, twice, for every unit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.hooks import RemovableHandle

from qdit.calibration import CalibrationData
from qdit.calibration.blocks import Segment, Walk
from qdit.calibration.replay import Outputs, by_point, count, rows
from qdit.calibration.streams import Streams, parts_of, row_shares
from qdit.model.base import DiffusionModel, Site
from qdit.model.roles import KIN
from qdit.nn.replace import replaced
from qdit.rounding.reconstruction.units import Unit
from qdit.storage.scratch import Scratch


@dataclass(frozen=True)
class Task:
    """What a unit has to reconstruct: its inputs and its target outputs."""

    predict: Callable[[Tensor], Tensor]
    """The output [n, …] of the unit, as it is installed when called, for calibration points by number [n]."""
    target: Tensor
    """The full-precision output for all points [points, …], in memory or on disk."""
    importance: Tensor | None = None
    """What the errors of points and channels weigh, [points, 1, channels] or similar; None: all count alike."""
    inner: Mapping[str, Tensor] = field(default_factory=dict)
    """Full-precision outputs of layers of the unit, too, by site, if their errors count as well."""
    shares: Mapping[str, Tensor] = field(default_factory=dict)
    """What the errors of rows of these outputs weigh, [points, rows, 1]; of a site without any, all weigh alike."""


class Targets:
    """The two walks (lanes), in full precision and as rounded so far; segments are visited in order.

    Args:
        model: the full-precision network.
        data: the calibration points.
        parts: the network's segments.
        scratch: where activations are kept.
    """

    def __init__(
        self, model: DiffusionModel, data: CalibrationData, parts: Sequence[Segment], scratch: Scratch | None = None
    ) -> None:
        self.model, self.data, self.scratch = model, data, scratch or Scratch()
        self.full, self.rounded = (Walk(model, data, list(parts), self.scratch) for _ in range(2))
        self.ahead: Segment | None = None
        """The segment that only the full-precision lane has passed."""

    def task(self, unit: Unit, layers: Mapping[str, nn.Module], weights: Sequence[Tensor] | None = None) -> Task:
        """The task of a unit of the segment that was reached; those of single layers come first.

        Args:
            unit: which.
            layers: what is installed in the rounded lane's segment for the units before this one.
            weights: of the errors of each tensor that the unit returns.
        """
        if unit.layer is not None:
            made = self._layer_task(unit.segment, unit.layer, layers)
            return made if weights is None else replace(made, importance=weights[0])
        if unit.segment.block is None:
            return self._tail_task(unit.segment)
        return self._block_task(unit.segment, weights)

    def inner(self, unit: Unit, names: Sequence[str]) -> dict[str, Tensor]:
        """The full-precision outputs [points, …] of some of a block's layers, by site; `task` comes afterwards.

        Those that close the block are left out, quantized or not: what they put out is what the block puts out.
        """
        if unit.layer is not None or unit.segment.block is None:
            return {}
        last = closing([site for site in self.model.sites() if site.path == unit.segment.block])
        found = observed(self.full, unit.segment, [name for name in names if name not in last], {}, inputs=False)
        return {name: by_point(outputs, len(self.data.t)) for name, (outputs,) in found.items()}

    @contextmanager
    def installed(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        """The network as the rounded lane sees it in the segment that was reached, with `layers` in place."""
        with replaced(self.model.denoiser, {**self.rounded.passed, **layers}):
            yield

    def advance(self, segment: Segment, layers: Mapping[str, nn.Module]) -> None:
        """Go on to the next segment, in the rounded lane with `layers` in place."""
        self._go_ahead(segment)
        self.rounded.advance(segment, layers)

    def _go_ahead(self, segment: Segment) -> None:
        if self.ahead is not segment:
            self.full.advance(segment, {})
            self.ahead = segment

    def _layer_task(self, segment: Segment, name: str, layers: Mapping[str, nn.Module]) -> Task:
        inputs, _ = observed(self.rounded, segment, [name], layers)[name]
        _, target = observed(self.full, segment, [name], {})[name]
        device, total = self.model.device, len(self.data.t)

        def predict(points: Tensor) -> Tensor:
            with self.model.clock.showing(self.data.t[points].to(device)):
                x = inputs[rows(points, len(inputs) // total)].to(device)
                return by_point(self.model.denoiser.get_submodule(name)(x), len(points))

        return Task(predict, by_point(target, total))

    def _block_task(self, segment: Segment, weights: Sequence[Tensor] | None) -> Task:
        self._go_ahead(segment)
        assert segment.block is not None
        block, walk = segment.block, self.rounded
        streams, target = self._joined(self.full.outputs[block], weights)
        with self.installed({}):  # the embedders before the blocks as they were rounded
            recorded = None if walk.structures else Arguments(walk, block)

        def predict(points: Tensor) -> Tensor:
            with torch.no_grad():
                given = walk.arguments(block, points) if recorded is None else recorded.at(points)
            args, kwargs = tree_map_only(Tensor, Tensor.contiguous, given)
            return streams.joined(walk.through(block, points, args, kwargs), points)

        return Task(predict, target, None if weights is None or streams.roots is not None else weights[0])

    def _joined(self, outputs: Outputs, weights: Sequence[Tensor] | None) -> tuple[Streams, Tensor]:
        """How the tensors of a block are joined, and what they are in full precision, in memory or on disk."""
        parts = parts_of(outputs.leaves, len(self.data.t))
        if len(parts) == 1:
            return Streams(), Streams().joined(outputs.leaves, slice(0, len(self.data.t)))
        shares = [row_shares(self.model, self.data, part.shape[1]) for part in parts]
        streams = Streams.relative(parts, shares)
        if weights is not None:
            pairs = zip(weights, shares, strict=True)
            streams = Streams([(own if share is None else own * share).sqrt() for own, share in pairs])
        target = self.scratch.empty((len(self.data.t), sum(part[0].numel() for part in parts)), torch.float32)
        for n, row in enumerate(target):
            row.copy_(streams.joined([part[n : n + 1] for part in parts], slice(n, n + 1))[0])
        return streams, target

    def _tail_task(self, segment: Segment) -> Task:
        target = torch.cat([output.cpu() for output in self.full.run(segment, {})])
        return Task(self.rounded.tail, target)


def observed(
    walk: Walk, segment: Segment, names: Sequence[str], layers: Mapping[str, nn.Module], inputs: bool = True
) -> dict[str, list[Tensor]]:
    """Layers' inputs (unless they are not wanted) and outputs over all points, on the CPU, by name.

    `walk` runs its segment once with `layers` in place.
    """
    kept: dict[str, list[Tensor]] = {}

    def keep(name: str, found: Sequence[Tensor]) -> None:
        points = walk.now
        if name not in kept:
            kept[name] = [_room(walk, x, len(x) // count(points)) for x in found]
        for own, x in zip(kept[name], found, strict=True):
            own[rows(points, len(x) // count(points))].copy_(x)

    def watch(name: str) -> RemovableHandle:
        layer = layers[name] if name in layers else walk.model.denoiser.get_submodule(name)

        def see(_layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            keep(name, [args[0], output] if inputs else [output])

        return layer.register_forward_hook(see)

    handles = [watch(name) for name in names]
    try:
        if names:
            walk.observe(segment, layers)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def _room(walk: Walk, x: Tensor, per_point: int) -> Tensor:
    """Room for tensors like `x`, which have so many rows a point, of all points."""
    return walk.scratch.empty((len(walk.data.t) * per_point, *x.shape[1:]), x.dtype)


class Arguments:
    """What enters the first block for all points, kept as the walk's batches gave it.

    The embedders before it may give other last bits for other batches (a convolution does), which learning would see.
    Tensors that grow with the number of points have rows for each of them; all else is equal for all points.

    Args:
        walk: before its first block.
        block: this block.
    """

    @torch.no_grad()
    def __init__(self, walk: Walk, block: str) -> None:
        one, two = (tree_leaves(walk.arguments(block, slice(0, n))) for n in (1, min(2, len(walk.data.t))))
        self.per_point = [len(a) if _grows(a, b) else None for a, b in zip(one, two, strict=True)]
        self.device = walk.model.device
        self.leaves: list[Any] = []
        for points in walk.batches():
            found, self.shape = tree_flatten(walk.arguments(block, points))
            pairs = list(zip(self.per_point, found, strict=True))
            self.leaves = self.leaves or [x if k is None else _room(walk, x, k) for k, x in pairs]
            for own, (per_point, x) in zip(self.leaves, pairs, strict=True):
                if per_point is not None:
                    own[rows(points, per_point)].copy_(x)

    def at(self, points: Tensor) -> Any:
        """The arguments and keywords for some points."""
        chosen = [
            leaf if per_point is None else leaf[rows(points, per_point)].to(self.device)
            for leaf, per_point in zip(self.leaves, self.per_point, strict=True)
        ]
        return tree_unflatten(chosen, self.shape)


def _grows(one: Any, two: Any) -> bool:
    """Whether a tensor has rows for each point, given that of one and of two points."""
    return isinstance(one, Tensor) and one.ndim > 0 and len(two) > len(one)


def closing(sites: Sequence[Site]) -> set[str]:
    """The layers of a block that put out what it puts out: the last, and its like of another stream."""
    roles = [KIN.get(site.role, site.role) for site in sites]
    return {site.name for site, role in zip(sites, roles, strict=True) if role == roles[-1]}
