"""Time-grouped quantization (TGQ; TQ-DiT, arXiv 2502.04056, eq. 9-12): static ranges for each group of sampling steps.

The paper divides the steps into equal groups for all activations; its release does so for attention probabilities
alone. An alternative here are the groups of least cost on the curve of ranges over time. The grid of a group is
calibrated on the calibration points of that group.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.calibration.observers import input_maxima
from qdit.checked import Checked, Count
from qdit.errors import UserError
from qdit.model.base import DiffusionModel, Site
from qdit.quant.time_groups import Groups, cheapest_starts, equal_starts, interpolated, range_costs, split

Place = Literal["inputs", "q", "k", "v", "probs"]
PLACES = get_args(Place)


@dataclass(frozen=True, kw_only=True)
class TimeGroups(Checked, ABC):
    """How sampling steps are grouped, and which tensors have a grid for each group.

    Args:
        groups: how many.
        where: what has one grid per group: `inputs` of layers, and operands of attentions (`q`, `k`, `v`, `probs`).

    Raises:
        UserError: fewer than one group, or an unknown place.
    """

    groups: Count = 1
    where: list[Place] = field(default_factory=lambda: list(PLACES))

    def count(self, place: str) -> int | None:
        """The number of groups of a place as `QuantSpec` has it."""
        return self.groups if self.groups > 1 and place in self.where else None

    def split(self, model: DiffusionModel, sites: Sequence[Site], data: CalibrationData) -> Groups:
        """The groups of the sampler behind the calibration data.

        Args:
            model: in full precision.
            sites: whose inputs are quantized.
            data: must have points in all groups.

        Raises:
            UserError: there are fewer steps than groups, or a group without points.
        """
        if self.groups == 1:
            return Groups()
        if (problem := self.too_many(len(data.timesteps))) is not None:
            raise UserError(problem)
        groups = split(data.timesteps, self.starts(model, sites, data))
        points = groups.of(data.t).bincount(minlength=groups.count)
        if empty := points.eq(0).nonzero().flatten().tolist():
            raise UserError(
                f"{len(empty)} of {groups.count} groups of timesteps have no calibration points; use more of "
                f"calibration.num_samples (now {len(data.t)}) or calibration.per_trajectory, or fewer groups "
                "(activation.time.groups)"
            )
        return groups

    def too_many(self, steps: int, network: str | None = None) -> str | None:
        """A sentence if there are fewer steps than groups; `network`: whose steps, where several take turns."""
        if steps >= self.groups:
            return None
        whose = f"{network} has {steps} of the sampler's steps" if network else f"the sampler has {steps} steps"
        return f"activation.time.groups={self.groups}, and {whose}; use activation.time.groups={max(steps, 1)} at most"

    @abstractmethod
    def starts(self, model: DiffusionModel, sites: Sequence[Site], data: CalibrationData) -> list[int]:
        """The first step, ascending in time, of each group but the lowest; arguments as `split`."""


class EqualGroups(TimeGroups):
    """Groups of equally many steps; sizes differ by one at most."""

    def starts(self, model: DiffusionModel, sites: Sequence[Site], data: CalibrationData) -> list[int]:
        """See `TimeGroups`."""
        return equal_starts(len(data.timesteps), self.groups)


class RangeGroups(TimeGroups):
    """The groups with the least rounding noise, estimated from how the ranges of layers' inputs change over time.

    The noise in a group is taken as the square of its widest range, relative to the input's mean squared range. Dynamic
    programming minimizes the sum over inputs and steps. Ranges at steps without calibration points are interpolated.
    """

    def starts(self, model: DiffusionModel, sites: Sequence[Site], data: CalibrationData) -> list[int]:
        """See `TimeGroups`."""
        if not sites:
            return equal_starts(len(data.timesteps), self.groups)
        return cheapest_starts(range_costs(range_curve(model, sites, data)), self.groups)


def range_curve(model: DiffusionModel, sites: Sequence[Site], data: CalibrationData) -> Float[Tensor, "steps sites"]:
    """The greatest magnitude of each site's input at each step, ascending in time, on the CPU."""
    seen = data.t.unique()
    curve = torch.zeros(len(seen), len(sites))
    columns = {site.name: column for column, site in enumerate(sites)}

    def see(site: Site, maxima: Tensor, timesteps: Tensor) -> None:
        row = torch.searchsorted(seen, timesteps.cpu())
        curve[:, columns[site.name]].scatter_reduce_(0, row, maxima.amax(1).cpu(), "amax")

    input_maxima(model, list(sites), data, see)
    return interpolated(curve, seen, torch.tensor(data.timesteps))
