"""The points (x_t, t, y) that a method sees of the trajectories of the network in full precision."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qdit.quant.time_groups import Time

if TYPE_CHECKING:
    from qdit.model.base import DiffusionModel


@dataclass(frozen=True)
class CalibrationData:
    """Points on the CPU: states `x` [n, C, h, w], timesteps `t` [n], classes `y` [n]; run `batch_size` at a time."""

    x: Tensor
    t: Tensor
    y: Tensor
    batch_size: int
    origin: Tensor | None = None
    """Trajectory and step of each point, [n, 2], if they are known."""
    visited: Sequence[Time] | None = None
    """What the model is told at the sampler's steps, if it is known; not all of it need occur in `t`."""

    @property
    def timesteps(self) -> list[Time]:
        """The sampler's timesteps, ascending; where they are not known, those that occur in the data."""
        return sorted(set(self.t.tolist() if self.visited is None else self.visited))

    def at(self, takes: Callable[[Tensor], Tensor]) -> "CalibrationData":
        """The points whose timesteps a function takes, in their order; the sampler's steps are those that it takes."""
        chosen, origin = takes(self.t), self.origin
        visited = [t for t in self.timesteps if bool(takes(torch.tensor(t)))]
        points = self.x[chosen], self.t[chosen], self.y[chosen], self.batch_size
        return CalibrationData(*points, None if origin is None else origin[chosen], visited)

    def batches(self, model: "DiffusionModel") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches on the model's device."""
        for part in torch.arange(len(self.x)).split(self.batch_size):
            x = self.x[part].to(model.device, model.dtype)
            yield x, self.t[part].to(model.device), self.y[part].to(model.device)


@dataclass
class Pass:
    """Calls of a network with all calibration points; hooks that watch it may ask what it is shown meanwhile."""

    model: "DiffusionModel"
    data: CalibrationData
    t: Tensor = field(init=False)
    """The timesteps of the batch that is run, [B], on the model's device."""
    y: Tensor = field(init=False)
    """Its classes, [B]."""

    def run(self) -> None:
        """Run batch by batch; the outputs are dropped."""
        for x, t, y in self.data.batches(self.model):
            self.t, self.y = t, y
            self.model.denoise(x, t, y)
