"""Inputs and targets of the units: two walks through the network, one in full precision and one as quantized so far.

The full-precision walk gives the targets, the quantized one the inputs. The activations of both are kept at the block
boundary that was reached, so that the inputs and targets of all units together cost two passes of the calibration data.
PTQ4DiT's release runs the network from its input, twice, for every unit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from qdit.calibration import CalibrationData
from qdit.calibration.blocks import Segment, Walk
from qdit.model.base import DiffusionModel
from qdit.nn.replace import replaced
from qdit.rounding.reconstruction.units import Unit


@dataclass(frozen=True)
class Task:
    """What a unit has to reconstruct: its inputs and its target outputs."""

    predict: Callable[[Tensor], Tensor]
    """The output of the unit, as it is installed at the time of the call, for calibration points by number [n]."""
    target: Tensor
    """The full-precision output for all points, on the CPU."""


class Lanes:
    """The two walks (lanes), in full precision and as rounded so far; segments are visited in order.

    Args:
        model: the full-precision network.
        data: the calibration points.
        parts: the network's segments.
    """

    def __init__(self, model: DiffusionModel, data: CalibrationData, parts: Sequence[Segment]) -> None:
        self.model, self.data = model, data
        self.full, self.rounded = Walk(model, data, list(parts)), Walk(model, data, list(parts))
        self.ahead: Segment | None = None
        """The segment that only the full-precision lane has passed."""

    def task(self, unit: Unit, layers: Mapping[str, nn.Module]) -> Task:
        """The task of a unit of the segment that was reached; those of single layers come first.

        Args:
            unit: which.
            layers: what is installed in the rounded lane's segment for the units before this one.
        """
        if unit.layer is not None:
            return self._layer_task(unit.segment, unit.layer, layers)
        return self._tail_task(unit.segment) if unit.segment.block is None else self._block_task(unit.segment)

    @contextmanager
    def installed(self, segment: Segment, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        """The network as the rounded lane sees it in a segment, with `layers` in place."""
        passed = self.rounded.passed if segment.block is None else {}  # what is behind the blocks may read from them
        with replaced(self.model.denoiser, {**passed, **layers}):
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
        inputs, _ = observed(self.rounded, segment, name, layers)
        _, target = observed(self.full, segment, name, {})

        def predict(rows: Tensor) -> Tensor:
            with self.model.clock.showing(self.data.t[rows].to(self.model.device)):
                return self.model.denoiser.get_submodule(name)(inputs[rows].to(self.model.device))

        return Task(predict, target)

    def _block_task(self, segment: Segment) -> Task:
        self._go_ahead(segment)
        hidden, target = self.rounded.hidden, self.full.hidden
        assert segment.block is not None
        assert hidden is not None
        assert target is not None
        block, device, boundary = segment.block, self.model.device, self.rounded.boundary
        others = Arguments([others for _, *others in boundary], [len(batch) for batch, *_ in boundary])

        def predict(rows: Tensor) -> Tensor:
            args, kwargs = others.at(rows)
            with self.model.clock.showing(self.data.t[rows].to(device)):
                output = self.model.denoiser.get_submodule(block)(hidden[rows].to(device), *args, **kwargs)
            return output[0] if isinstance(output, tuple) else output

        return Task(predict, target)

    def _tail_task(self, segment: Segment) -> Task:
        hidden = self.rounded.hidden
        assert hidden is not None
        target = torch.cat([output.cpu() for output in self.full.run(segment, {})])

        def predict(rows: Tensor) -> Tensor:
            x, t, y = (part[rows].to(self.model.device) for part in (self.data.x, self.data.t, self.data.y))
            return self.rounded.tail(x.to(self.model.dtype), t, y, hidden[rows].to(self.model.device))

        return Task(predict, target)


def observed(walk: Walk, segment: Segment, name: str, layers: Mapping[str, nn.Module]) -> tuple[Tensor, Tensor]:
    """A layer's inputs and outputs over all points, on the CPU, while `walk` runs its segment with `layers`."""
    seen: list[tuple[Tensor, Tensor]] = []

    def see(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append((args[0].cpu(), output.cpu()))

    layer = layers[name] if name in layers else walk.model.denoiser.get_submodule(name)
    handle = layer.register_forward_hook(see)
    try:
        walk.observe(segment, layers)
    finally:
        handle.remove()
    inputs, outputs = zip(*seen, strict=True)
    return torch.cat(inputs), torch.cat(outputs)


class Arguments:
    """The arguments of all batches of a call: tensors with a row for each point are joined, others are the first's.

    Args:
        batches: positional arguments and keywords of each batch, nested as they may be.
        sizes: points in each batch.
    """

    def __init__(self, batches: Sequence[Any], sizes: Sequence[int]) -> None:
        self.shape = tree_flatten(batches[0])[1]
        self.leaves: list[Any] = []
        self.moving: list[bool] = []
        for column in zip(*(tree_flatten(batch)[0] for batch in batches), strict=True):
            moves = all(
                isinstance(v, Tensor) and v.ndim > 0 and len(v) == size for v, size in zip(column, sizes, strict=True)
            )
            self.moving.append(moves)
            self.leaves.append(torch.cat(column) if moves else column[0])

    def at(self, rows: Tensor) -> Any:
        """The arguments of some points, in their original nesting."""
        chosen = [leaf[rows] if moves else leaf for leaf, moves in zip(self.leaves, self.moving, strict=True)]
        return tree_unflatten(chosen, self.shape)
