"""Learned scales and shifts of channels: PassionSR's LET (arXiv 2411.17106), which is OmniQuant's (arXiv 2308.13137).

    X̃ = (X - δ) / s        W̃ = W diag(s)        b̃ = b + W δ

leave the product as it is. s and δ, a number for each channel of an input, are learned block by block, by the squared
error of the block's output with weights and inputs rounded as the recipe would, to nearest and from the minimum to the
maximum at hand. Rounding counts as the identity in derivatives; ranges do not, so that s learns through the steps. They
start at s = (max |x| / max |w|)^exponent, as PassionSR's code has it (one exponent for both, not α and 1 - α), and
δ = 0. A block that ends further from full precision than it started keeps its start.

Not as in PassionSR: its loss is that of the whole network's output, at one step; blocks see inputs in full precision
here. Left out: scales of queries against keys, and of probabilities against values, which the code has by key position
(and so for one resolution); two grids for the two halves of an input's channels, a heritage of U-Nets; running averages
of ranges. Its second stage, learned ends of ranges, is a rounding.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qdit.calibration import CalibrationData
from qdit.calibration.blocks import Segment, Walk, segments
from qdit.calibration.observers import input_maxima
from qdit.checked import Checked, Positive, Samples, Share, Whole
from qdit.errors import UserError
from qdit.execution import repeatable
from qdit.model.base import DiffusionModel, Site
from qdit.nn.patches import matrix
from qdit.seeding import generator
from qdit.transform.inputs import Input
from qdit.transform.mapped import BlockTask, Channels, Mapped
from qdit.transform.reparam import ChannelMap
from qdit.transform.trial import Trial

log = logging.getLogger("qdit")
DEAD = 1e-6  # of the largest channel: whose scale stays 1


def starting_scales(
    inputs: Float[Tensor, " channels"], weights: Float[Tensor, " channels"], exponent: float
) -> Float[Tensor, " channels"]:
    """s = (max |x| / max |w|)^exponent; 1 where either is next to nothing.

    >>> starting_scales(torch.tensor([8.0, 1]), torch.tensor([0.5, 2]), 0.3)
    tensor([2.2974, 0.8123])
    """
    alive = (inputs > DEAD * inputs.amax()) & (weights > DEAD * weights.amax())
    return torch.where(alive, inputs / torch.where(alive, weights, 1.0), 1.0) ** exponent


@dataclass(frozen=True, kw_only=True)
class Learned(ChannelMap, Checked):
    """Scale and shift the channels of inputs by what blocks learn.

    Args:
        name, roles: see `qdit.transform.folding.Drafted`.
        iterations: of Adam, for each block; 0 keeps the start.
        batch_size: calibration points an iteration.
        rate: Adam's, of log s and of δ as a share of the channel's greatest magnitude.
        exponent: of the start.
        seed: of the order of points.

    Raises:
        UserError: a value is out of range.
    """

    iterations: Whole = 100
    batch_size: Samples = 8
    rate: Positive = 5e-3
    exponent: Share = 0.3
    seed: int = 0
    needs_calibration = True

    def factors(self, measured: Float[Tensor, "2 channels"]) -> tuple[Tensor, Tensor]:
        """See `ChannelMap`."""
        s, shift = measured
        return s, -shift

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """s and δ [2, channels] of every input, by its name.

        Raises:
            UserError: weights or inputs have no steps that could be learned through, or outputs are not finite.
        """
        inputs, data = self.inputs(model, sites), collect()
        for each in inputs:
            for spec in (trial.weight_spec(each.quantized[0]), trial.input_spec(each.quantized[0])):
                if not (spec.is_integer or spec.is_identity):
                    raise UserError(
                        f"transform=learned learns through the steps of integers, and grid={spec.grid!r} has others; "
                        "use weight.grid=asymmetric and activation.grid=asymmetric, or transform=smooth"
                    )
        maxima = self.maxima(model, inputs, data)
        starts = {each.name: self.start(model, each, maxima[each.name]) for each in inputs}
        found = {name: torch.stack([s, torch.zeros_like(s)]).cpu() for name, s in starts.items()}
        if not self.iterations:
            return found
        parts = segments(model.sites(), {site.name for site in sites})
        walk = Walk(model, data, parts)
        for part in parts[:-1]:
            own = [each for each in inputs if part.block and all(s.path == part.block for s in each.quantized)]
            if own:
                channels = {e.name: Channels(starts[e.name], maxima[e.name].clamp(min=DEAD)) for e in own}
                found |= self.learn(walk, part, own, channels, trial)
            walk.advance(part, {})
        return found

    def maxima(
        self, model: DiffusionModel, inputs: Sequence[Input], data: CalibrationData
    ) -> dict[str, Float[Tensor, " channels"]]:
        """The greatest magnitude of each channel of every input."""
        found: dict[str, Tensor] = {}

        def see(site: Site, rows: Tensor, _: Tensor) -> None:
            most = rows.amax(0)
            found[site.name] = torch.maximum(found[site.name], most) if site.name in found else most

        input_maxima(model, [each.quantized[0] for each in inputs], data, see)
        return found

    def start(self, model: DiffusionModel, read: Input, maxima: Tensor) -> Float[Tensor, " channels"]:
        """s of an input before anything is learned."""
        weights = [matrix(model.denoiser.get_submodule(s.name)).float().abs().amax(0) for s in read.quantized]
        return starting_scales(maxima, torch.stack(weights).amax(0), self.exponent)

    def learn(
        self,
        walk: Walk,
        part: Segment,
        inputs: Sequence[Input],
        channels: Mapping[str, Channels],
        trial: Trial,
    ) -> dict[str, Tensor]:
        """s and δ of the inputs of a block; none where it was better as it started.

        Raises:
            UserError: its outputs are not finite.
        """
        task = BlockTask(walk, part, self.batch_size)
        layers: dict[str, nn.Module] = {}
        for each in inputs:
            for site in each.quantized:
                specs = trial.weight_spec(site), trial.input_spec(site)
                layer = walk.model.denoiser.get_submodule(site.name)
                layers[site.name] = Mapped(layer, channels[each.name], *specs)
        before = task.error(layers)
        if not isfinite(before):
            raise UserError(f"transform=learned: the outputs of {part.block} are not finite; try dtype=float32")
        parameters = [value for own in channels.values() for value in (own.logarithm, own.moved)]
        optimizer = torch.optim.Adam(parameters, lr=self.rate)
        random = generator(self.seed, f"learned {part.name}", 0)
        for _ in range(self.iterations):
            rows = torch.randperm(task.points, generator=random)[: self.batch_size]
            with torch.enable_grad(), repeatable(walk.model.device):
                gradients = torch.autograd.grad(task.loss(layers, rows), parameters)
            for value, gradient in zip(parameters, gradients, strict=True):
                value.grad = gradient
            optimizer.step()
        after = task.error(layers)
        log.debug("%s: error %.4g, at the start %.4g", part.name, after, before)
        return {name: own.value() for name, own in channels.items()} if after < before else {}
