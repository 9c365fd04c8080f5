"""Calibration data: points (x_t, t, y) of guided full-precision trajectories.

The state is recorded before the guidance doubles the batch. Because sampling runs the network on the condition and on
the null class, a share of the points gets the null class as its label (Q-DiT's release has none; that is
`null_share=0`). Options differ in which steps of a trajectory they keep:

* `uniform`: `per_trajectory` evenly spaced steps, shifted from one trajectory to the next so that all steps occur
  (Q-Diffusion's "every k-th step").
* `random`: as many steps, drawn anew for every trajectory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qdit.errors import UserError

if TYPE_CHECKING:
    from qdit.dataset.base import Dataset
    from qdit.model.base import DiffusionModel
    from qdit.sampler.sampler import Sampler

INDEX_OFFSET = 10_000_000  # calibration trajectories never share noise with evaluated samples


@dataclass(frozen=True)
class CalibrationData:
    """Points on the CPU: `x` [n, C, h, w], `t` [n], `y` [n], run in batches of `batch_size`."""

    x: Tensor
    t: Tensor
    y: Tensor
    batch_size: int

    def batches(self, model: "DiffusionModel") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches on the model's device."""
        for part in torch.arange(len(self.x)).split(self.batch_size):
            x = self.x[part].to(model.device, model.dtype)
            yield x, self.t[part].to(model.device), self.y[part].to(model.device)


@dataclass(frozen=True, kw_only=True)
class TrajectoryCalibration:
    """What the options share: collect points from trajectories.

    Args:
        num_samples: points in all.
        per_trajectory: points taken from one trajectory.
        null_share: share of the points that get the null class.
        batch_size: trajectories sampled, and points run, at a time.
        seed: own stream, added to the run's seed: calibration can be repeated while the evaluated noise stays.
    """

    num_samples: int
    per_trajectory: int
    null_share: float
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_samples, self.per_trajectory, self.batch_size) < 1 or not 0 <= self.null_share <= 1:
            raise UserError(
                f"calibration: num_samples={self.num_samples}, per_trajectory={self.per_trajectory}, "
                f"batch_size={self.batch_size} must be at least 1 and null_share={self.null_share} between 0 and 1"
            )

    def kept_steps(self, trajectory: int, num_steps: int, seed: int) -> list[int]:
        """The step indices recorded of one trajectory, `per_trajectory` at most."""
        raise TypeError("use UniformCalibration or RandomCalibration")

    def collect(self, model: "DiffusionModel", sampler: "Sampler", dataset: "Dataset", seed: int) -> CalibrationData:
        """Sample trajectories in full precision and keep the chosen points."""
        num_steps = len(sampler.timesteps(model))
        trajectories = -(-self.num_samples // min(self.per_trajectory, num_steps))
        points: list[tuple[Tensor, int, int]] = []
        for first in range(0, trajectories, self.batch_size):
            batch = range(first, min(first + self.batch_size, trajectories))
            indices = [INDEX_OFFSET + i for i in batch]
            labels = dataset.labels(indices, seed + self.seed)
            wanted = [self.kept_steps(i, num_steps, seed) for i in batch]

            def record(step: int, timestep: int, x: Tensor, output: Tensor, wanted=wanted, labels=labels) -> None:
                points.extend(
                    (x[row].float().cpu(), timestep, int(labels[row]))
                    for row, keep in enumerate(wanted)
                    if step in keep
                )

            sampler.sample(model, indices, labels, seed + self.seed, callback=record)
        null_share = (
            self.null_share if sampler.guidance != 1 else 0.0
        )  # unguided, the network never sees the null class
        # Shuffled, so that each batch mixes timesteps; the null class goes to an even share.
        order = np.random.default_rng([seed, self.seed]).permutation(len(points))[: self.num_samples]
        labels = [
            model.null_class if int((n + 1) * null_share) > int(n * null_share) else points[i][2]
            for n, i in enumerate(order)
        ]
        return CalibrationData(
            torch.stack([points[i][0] for i in order]),
            torch.tensor([points[i][1] for i in order]),
            torch.tensor(labels),
            self.batch_size,
        )


class UniformCalibration(TrajectoryCalibration):
    """Evenly spaced steps, shifted from one trajectory to the next so that all steps occur."""

    def kept_steps(self, trajectory: int, num_steps: int, seed: int) -> list[int]:
        """The step indices recorded of one trajectory."""
        count = min(self.per_trajectory, num_steps)
        stride = num_steps / count
        shift = trajectory % ceil(stride)
        return sorted({(int(i * stride) + shift) % num_steps for i in range(count)})


class RandomCalibration(TrajectoryCalibration):
    """Steps drawn anew, without replacement, for every trajectory."""

    def kept_steps(self, trajectory: int, num_steps: int, seed: int) -> list[int]:
        """The step indices recorded of one trajectory."""
        rng = np.random.default_rng([seed, self.seed, trajectory])
        return sorted(rng.choice(num_steps, min(self.per_trajectory, num_steps), replace=False).tolist())


@dataclass(frozen=True, kw_only=True)
class NoCalibration:
    """No data; a part that needs some refuses. The keys are those of the other options."""

    num_samples: int = 0
    per_trajectory: int = 1
    null_share: float = 0.0
    batch_size: int = 1
    seed: int = 0
