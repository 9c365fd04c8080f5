"""Scale reparameterization (RepQ-ViT): all channels of an input get the same range, so that one grid fits them all.

Inputs behind a LayerNorm vary from channel to channel. RepQ-ViT (arXiv 2212.08254, eq. 5-11) gives each channel a grid
(s, z) of its own, and then rewrites the network so that the mean grid (s̃, z̃) gives the very same codes:

    r₁ = s / s̃,   r₂ = z - z̃,   x' = (x + s r₂) / r₁,   W' = W diag(r₁),   b' = b - W (s r₂)

Here the same is written in terms of ranges, without bits or rounded zero points: x' = (x + d) / r maps every channel's
range to one of the mean width, in which 0 lies at the mean position (`aligned`). In a DiT the LayerNorm has no affine
parameters; adaLN computes them for each sample, and scale and shift are folded into it (the scale into 1 + γ, both into
β). The grid is calibrated after the rewrite as any other; RepQ-ViT takes over (s̃, z̃), whose z̃ can be a fraction.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.calibration.reservoir import ValueReservoir
from qdit.ledger import RunTime
from qdit.model.base import DiffusionModel, Site
from qdit.nn.basis import Scale, Shift
from qdit.quant.ranges import Range
from qdit.quant.spec import QuantSpec
from qdit.transform.folding import Draft, Drafted
from qdit.transform.inputs import watch_rows
from qdit.transform.trial import Trial

CONSTANT = 1e-5  # width of a channel's range, relative to the widest, below which the channel counts as constant
VALUES = 2**20  # values kept of an input for the range rule, at least
CHANNEL_VALUES = 2**12  # of a channel, at least: of fewer the two extremes weigh too much in a mean (`ValueReservoir`)


def aligned(
    lo: Float[Tensor, " channels"], hi: Float[Tensor, " channels"]
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """(r, d), such that (x + d) / r has the same range in every channel: mean width, 0 at the mean place.

    A channel that is constant becomes 0. If 0 is outside of most channels' ranges, it becomes an end.

    >>> lo, hi = torch.tensor([-1.0, -2.0, 0.0]), torch.tensor([1.0, 4.0, 1.0])
    >>> r, d = aligned(lo, hi)
    >>> (lo + d) / r, (hi + d) / r
    (tensor([-0.8333, -0.8333, -0.8333]), tensor([2.1667, 2.1667, 2.1667]))
    """
    width = hi - lo
    constant = width <= CONSTANT * width.amax()
    if constant.all():
        return torch.ones_like(lo), -lo
    place = (-lo[~constant] / width[~constant]).mean().clamp(0, 1)
    r = torch.where(constant, 1.0, width / width[~constant].mean())
    return r, torch.where(constant, -lo, -lo - place * width)


@dataclass(frozen=True, kw_only=True)
class ChannelMap(Drafted):
    """Base of transforms that scale and shift the channels of inputs: x' = (x + d) / r.

    Args:
        name, roles: see `qdit.transform.folding.Drafted`.
    """

    shifting = True

    @abstractmethod
    def factors(self, measured: Float[Tensor, "2 channels"]) -> tuple[Tensor, Tensor]:
        """(r, d) of an input, both [channels], from what was measured of it."""

    def run_time(self, model: DiffusionModel, sites: list[Site]) -> list[RunTime]:
        """See `Transform`: two 16-bit numbers, an addition and a multiplication for each channel."""
        left = [each for each in self.inputs(model, sites) if self.fold(model, each) is None]
        return [RunTime(each.quantized[0], 2 * 16 * each.channels, 2 * each.channels) for each in left]

    def edit(self, draft: Draft, sites: list[Site], measured: dict[str, Tensor]) -> None:
        """See `Step`. What is folded reaches all readers of the input, quantized or not."""
        model = draft.model
        for each in self.inputs(model, sites):
            r, d = (part.to(model.device) for part in self.factors(measured[each.name]))
            fold = self.fold(model, each)
            for site in each.readers if fold else each.quantized:
                draft.shift_columns(site.name, d)
                draft.scale_columns(site.name, r)
            if fold is not None:
                draft.shift_output(fold, d)
                draft.scale_output(fold, 1 / r)
                continue
            changes = torch.nn.Sequential(Shift(d, model.dtype), Scale(1 / r, model.dtype))
            for site in each.quantized:
                draft.at_run_time(site.name, changes)


@dataclass(frozen=True, kw_only=True)
class Reparameterization(ChannelMap):
    """Give all channels of inputs one range.

    Args:
        name, roles: see `qdit.transform.folding.Drafted`.
        range: the rule that finds each channel's range.
        bits: of inputs; for rules that depend on them.
    """

    range: Range
    bits: int
    needs_calibration = True

    def factors(self, measured: Float[Tensor, "2 channels"]) -> tuple[Tensor, Tensor]:
        """See `ChannelMap`."""
        return aligned(*measured)

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """The range (lo, hi) [2, channels] of every input, by its name, from one pass of the calibration data."""
        inputs, data = self.inputs(model, sites), collect()
        spec = QuantSpec(bits=self.bits, granularity="row", grid="asymmetric", dynamic=False)
        sizes = {each.name: max(VALUES, CHANNEL_VALUES * each.channels) for each in inputs}
        seen = {each.name: ValueReservoir(sizes[each.name], rows=each.channels) for each in inputs}
        watch_rows(model, inputs, data, lambda read, x: seen[read.name].add(x.T))
        return {name: torch.cat(self.range(found.values(), spec), 1).T for name, found in seen.items()}
