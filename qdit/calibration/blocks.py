"""Run calibration data through a diffusion transformer block by block, without changing the model's code.

Only the activations at one block's boundary are kept (on the CPU); each step replaces them by the next boundary's. So
time grows linearly with depth, and memory does not grow; Q-DiT's release runs the whole network for every block. Blocks
are found through the names of the sites, and are called with the arguments that the network itself gave to the first
block. After the last one, the network runs with its blocks bypassed. What is assumed of a network: its blocks follow
one another, each maps its first argument to that of the next, and they share all other arguments (DiT, PixArt and
similar).
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from qdit.calibration import CalibrationData
from qdit.errors import UserError
from qdit.model.base import DiffusionModel, Site
from qdit.nn.replace import replaced


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
        UserError: the network has no blocks.
    """
    inside = [n for n, site in enumerate(sites) if site.block is not None]
    if not inside:
        raise UserError("this model has no transformer blocks to walk through; use rounding=nearest")
    first, last = inside[0], inside[-1] + 1

    def segment(name: str, members: Sequence[Site], block: str | None = None) -> Segment:
        return Segment(name, [site for site in members if site.name in chosen], block)

    found = [segment("before", sites[:first])]
    for index, group in groupby(sites[first:last], key=lambda site: site.block):
        members = list(group)
        found.append(segment(f"block_{index:03d}", members, _block_path(members[0])))
    return [*found, segment("after", sites[last:])]


def _block_path(site: Site) -> str:
    """The path of the block that a site is in: its name up to the block's number."""
    parts = site.name.split(".")
    return ".".join(parts[: parts.index(str(site.block)) + 1])


class _Reached(Exception):
    """The first block was reached; the rest of the network need not run."""


@dataclass
class Walk:
    """Calibration data on its way through a network; the segments are visited in order.

    Args:
        model: the network.
        data: the calibration points.
        segments: from `segments`.
    """

    model: DiffusionModel
    data: CalibrationData
    segments: list[Segment]
    passed: dict[str, nn.Module] = field(default_factory=dict)
    """Layers of the segments that were passed."""
    boundary: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    """Input on the CPU, other arguments and keywords of the next block, for every batch."""
    hidden: Tensor | None = None
    """The inputs of all batches in one tensor, of which those in `boundary` are views."""

    def observe(self, segment: Segment, layers: Mapping[str, nn.Module]) -> None:
        """Run the data through `segment` with `layers` in place."""
        for _ in self.run(segment, layers):
            pass

    def advance(self, segment: Segment, layers: Mapping[str, nn.Module]) -> None:
        """Run the data through `segment` with `layers` in place, and go on to the next one."""
        if segment.block is None:
            entering = list(self.run(segment, layers))
            self.hidden = torch.cat([hidden for hidden, _, _ in entering])
            views = self.hidden.split([len(hidden) for hidden, _, _ in entering])
            self.boundary = [(view, *others) for view, (_, *others) in zip(views, entering, strict=True)]
        else:
            for batch, output in enumerate(self.run(segment, layers)):
                self.boundary[batch][0].copy_(output)
        self.passed |= layers

    def tail(self, x: Tensor, t: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        """The network's output, given the last block's output `hidden`; the blocks do not run."""
        blocks = [self.model.denoiser.get_submodule(part.block) for part in self.segments if part.block is not None]
        with bypassed(blocks, hidden):
            return self.model.denoise(x, t, y)

    def run(self, segment: Segment, layers: Mapping[str, nn.Module]) -> Iterator[Any]:
        """What the data becomes in `segment` with `layers` in place, batch by batch: see the three methods below."""
        if segment.block is not None:
            return self._run_block(segment.block, layers)
        if segment is self.segments[0]:
            return self._run_to_blocks(layers)
        return self._run_tail(layers)

    def _run_block(self, path: str, layers: Mapping[str, nn.Module]) -> Iterator[Tensor]:
        """Outputs of a block, on the CPU."""
        block = self.model.denoiser.get_submodule(path)
        with replaced(self.model.denoiser, layers):
            for timesteps, (hidden, args, kwargs) in zip(
                self.data.t.split(self.data.batch_size), self.boundary, strict=True
            ):
                with self.model.clock.showing(timesteps.to(self.model.device)):
                    output = block(hidden.to(self.model.device), *args, **kwargs)
                yield (output[0] if isinstance(output, tuple) else output).cpu()

    def _run_to_blocks(self, layers: Mapping[str, nn.Module]) -> Iterator[tuple]:
        """What enters the first block: its input on the CPU, its other arguments and keywords."""
        caught: list[tuple] = []

        def catch(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            caught.append((args[0].cpu(), args[1:], kwargs))
            raise _Reached

        path = self.segments[1].block
        assert path is not None
        handle = self.model.denoiser.get_submodule(path).register_forward_pre_hook(catch, with_kwargs=True)
        try:
            with replaced(self.model.denoiser, layers):
                for x, t, y in self.data.batches(self.model):
                    try:
                        self.model.denoise(x, t, y)
                    except _Reached:
                        yield caught.pop()
        finally:
            handle.remove()

    def _run_tail(self, layers: Mapping[str, nn.Module]) -> Iterator[Tensor]:
        """Outputs of the network. The last segment may read from the blocks (DiT's does), so these are in place."""
        with replaced(self.model.denoiser, {**self.passed, **layers}):
            for (x, t, y), (hidden, _, _) in zip(self.data.batches(self.model), self.boundary, strict=True):
                yield self.tail(x, t, y, hidden.to(self.model.device))


@contextmanager
def bypassed(blocks: Sequence[nn.Module], hidden: Tensor) -> Iterator[None]:
    """Let `blocks` return `hidden`, whatever they are given; afterwards they compute again."""
    originals = [vars(block).get("forward") for block in blocks]  # a wrapper may have put one there
    try:
        for block in blocks:
            block.forward = lambda *args, **kwargs: hidden
        yield
    finally:
        for block, original in zip(blocks, originals, strict=True):
            if original is None:
                del block.forward
            else:
                block.forward = original
