"""Run calibration data through a diffusion transformer block by block, without changing the model's code.

Only the outputs of one block are kept, in memory or, where they are too large (a video's), on disk; each step replaces
them by the next block's. So time grows linearly with depth, and memory does not grow; Q-DiT's release runs the whole
network for every block. To find what enters a block, the network's own forward runs with stand-ins for the blocks
before it, of which the last returns what is kept (`qdit.calibration.replay`): embedders, reshapes and concatenations
between blocks are the network's own, and cost one more pass of them for each block. After the last block, the network
runs with stand-ins for all.

What is assumed of a network: each block reads outputs of the block that ran before it, or of the last block of another
list. Where it does not (skip connections), a walk says so.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from qdit.calibration import CalibrationData
from qdit.calibration.observers import attended_rows
from qdit.calibration.replay import Outputs, Points, Reached, Structure, count, has_nan, standing_in
from qdit.errors import UserError
from qdit.model.base import DiffusionModel, Site
from qdit.nn.replace import replaced
from qdit.storage.scratch import Scratch


@dataclass(frozen=True)
class Segment:
    """One stop of the walk, and its quantized sites: those before the blocks, of one block, or after the blocks."""

    name: str
    """`before`, `block_000` …, `after`."""
    sites: list[Site]
    """In forward order."""
    block: str | None = None
    """The block's path in the denoiser."""

    def stages(self) -> list[list[Site]]:
        """The sites in the order of the computation; those of one list depend only on earlier lists (q, k and v)."""
        return [list(stage) for _, stage in groupby(self.sites, key=lambda site: site.stage)]


def segments(sites: Sequence[Site], chosen: Container[str]) -> list[Segment]:
    """A network's segments, first to last, with those of its sites that are `chosen`; some may have none.

    Raises:
        UserError: the network has no blocks, or a chosen site lies between two.
    """
    inside = [n for n, site in enumerate(sites) if site.path is not None]
    if not inside:
        raise UserError("this model has no transformer blocks to walk through; use rounding=nearest")
    first, last = inside[0], inside[-1] + 1
    blocks: dict[str | None, list[Site]] = {}
    for site in sites[first:last]:
        blocks.setdefault(site.path, []).append(site)
    if between := [site.name for site in blocks.pop(None, []) if site.name in chosen]:
        raise UserError(
            f"{', '.join(between)} run between transformer blocks, where no walk stops; leave them out (scope.exclude) "
            "or use rounding=nearest"
        )

    def segment(name: str, members: Sequence[Site], block: str | None = None) -> Segment:
        return Segment(name, [site for site in members if site.name in chosen], block)

    found = [segment(f"block_{n:03d}", members, path) for n, (path, members) in enumerate(blocks.items())]
    return [segment("before", sites[:first]), *found, segment("after", sites[last:])]


@dataclass
class Walk:
    """Calibration data on its way through a network; the segments are visited in order.

    Args:
        model: the network.
        data: the calibration points.
        segments: from `segments`.
        scratch: where the outputs of blocks are kept.
    """

    model: DiffusionModel
    data: CalibrationData
    segments: list[Segment]
    scratch: Scratch = field(default_factory=Scratch)
    passed: dict[str, nn.Module] = field(default_factory=dict)
    """Layers of the segments that were passed."""
    structures: dict[str, Structure] = field(default_factory=dict)
    """Of the outputs of each block that was passed, in order."""
    outputs: dict[str, Outputs] = field(default_factory=dict)
    """Of the block that was passed last, and of the last ones of lists."""

    now: Points = field(default_factory=lambda: slice(0))
    """The points that are on their way."""

    def attended_rows(self, site: str, rows: Tensor) -> Tensor:
        """Those of a site's rows, as they come now, that anything depends on: see `DiffusionModel.attended`."""
        return attended_rows(self.model, site, self.data.y[self.now].to(self.model.device), rows)

    def observe(self, segment: Segment, layers: Mapping[str, nn.Module]) -> None:
        """Run the data through `segment` with `layers` in place."""
        for _ in self.run(segment, layers):
            pass

    def advance(self, segment: Segment, layers: Mapping[str, nn.Module]) -> None:
        """Run the data through `segment` with `layers` in place, and go on to the next one."""
        if segment.block is not None:
            self._keep(segment.block, self.run(segment, layers))
        self.passed |= layers

    def _keep(self, block: str, found: Iterator[Any]) -> None:
        """Keep the outputs of a block, of all batches, in the place of those of the block before it."""
        ends = {part.block.rpartition(".")[0]: part.block for part in self.segments if part.block is not None}.values()
        before = next(reversed(self.structures), None)
        room = None if before is None or before in ends else self.outputs[before]  # read before it is written
        kept: Outputs | None = None
        for points, output in zip(self.batches(), found, strict=True):
            if kept is None:
                fits = room is not None and room.fits(output, count(points))
                kept = room if fits else Outputs.like(output, count(points), len(self.data.x), self.scratch)
            assert kept is not None
            kept.put(points, output)
        assert kept is not None
        self.outputs = {path: outputs for path, outputs in self.outputs.items() if path in ends} | {block: kept}
        self.structures[block] = kept.structure

    def batches(self) -> list[slice]:
        """The points, a batch at a time."""
        size, total = self.data.batch_size, len(self.data.x)
        return [slice(first, min(first + size, total)) for first in range(0, total, size)]

    def run(self, segment: Segment, layers: Mapping[str, nn.Module]) -> Iterator[Any]:
        """What the data becomes in `segment` with `layers` in place, batch by batch.

        The outputs of a block, or, behind the blocks, of the network; before them, what enters the first block.

        Raises:
            UserError: this depends on a block whose outputs are not kept.
        """
        with replaced(self.model.denoiser, {**self.passed, **layers}):
            for points in self.batches():
                self.now = points
                if segment is self.segments[-1]:
                    output = self.tail(points)
                    self._check("the network's output", output, points)
                    yield output
                    continue
                given = self.arguments(segment.block or str(self.segments[1].block), points)
                self._check(f"what enters {segment.block}", given, points)
                yield given if segment.block is None else self.through(segment.block, points, *given)

    def through(self, block: str, points: Points, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What a block, as it is now, returns for some points, given its arguments."""
        with self.model.clock.showing(self.data.t[points].to(self.model.device)):
            return self.model.denoiser.get_submodule(block)(*args, **kwargs)

    def arguments(self, block: str, points: Points) -> tuple[tuple, dict[str, Any]]:
        """What the network gives to the block behind those that were passed, for some points."""
        found: list[tuple[tuple, dict[str, Any]]] = []

        def record(*args: Any, **kwargs: Any) -> None:
            found.append((args, kwargs))
            raise Reached

        try:
            self._replay(points, {block: record})
        except Reached:
            return found[0]
        raise UserError(f"a forward pass does not run {block}, which cannot be walked; use rounding=nearest")

    def tail(self, points: Points) -> Tensor:
        """The network's output for some points, given the outputs of the last block; the blocks do not run."""
        return self._replay(points, {})

    def _replay(self, points: Points, calls: Mapping[str, Any]) -> Tensor:
        """Run the network with stand-ins for the blocks that were passed, and with `calls` for others."""
        device, dtype = self.model.device, self.model.dtype

        def standing(path: str, *args: Any, **kwargs: Any) -> Any:
            if path in self.outputs:
                return self.outputs[path].at(points, device)
            return self.structures[path].blank(count(points), device)

        stubs = {path: partial(standing, path) for path in self.structures}
        x, t, y = (part[points].to(device) for part in (self.data.x, self.data.t, self.data.y))
        with standing_in(self.model.denoiser, {**stubs, **calls}):
            return self.model.denoise(x.to(dtype), t, y)

    def _check(self, what: str, values: Any, points: Points) -> None:
        """Refuse what depends on the outputs of a block that are not kept: blanks are NaN, as few other things are."""
        if len(self.outputs) == len(self.structures) or not has_nan(values):
            return
        kept = [outputs.at(points, self.model.device) for outputs in self.outputs.values()]
        if not has_nan([kept, self.data.x[points]]):
            raise UserError(
                f"{what} depends on other blocks than the one before it (or is not finite), so that this network "
                "cannot be walked block by block; use rounding=nearest"
            )
