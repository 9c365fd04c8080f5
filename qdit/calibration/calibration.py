"""Calibration data: points (x_t, t, y) of guided full-precision trajectories.

Points are chosen first, as (class, noise, step): `TrajectoryCalibration.choose`. Only trajectories on which a point was
chosen are then sampled, only as far as their last point, and those of equal length in one batch. PTQ4DiT's release
samples 2,000 whole trajectories and uses a hundredth of their states. The choice depends on the config and the seeds
alone: it specifies the data, and saved states are a cache of it.

The state x_t is recorded before classifier-free guidance doubles the batch. Because sampling runs the network on the
class and on the null class, a share of the points gets the null class as its label (Q-DiT's release has none, which is
`null_share=0`). The options differ in which steps of a trajectory they keep: see their classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, erf, sqrt
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from qdit.calibration.data import CalibrationData
from qdit.checked import Checked, Count, Samples, Share
from qdit.errors import UserError
from qdit.quant.time_groups import Time
from qdit.seeding import CALIBRATION
from qdit.storage.progress import progress

if TYPE_CHECKING:
    from qdit.dataset.base import Source
    from qdit.model.base import DiffusionModel
    from qdit.sampler.sampler import Sampler


@dataclass(frozen=True)
class Point:
    """A point before it is sampled."""

    trajectory: int
    """Number of the trajectory, which is its noise; its class follows from the data set's labels."""
    step: int
    """Of the sampler: 0 is the noisiest."""
    null: bool
    """Whether the network is shown the null class with it, instead of the trajectory's."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryCalibration(Checked, ABC):
    """What the options share: choosing points of trajectories, and collecting them.

    Args:
        num_samples: points in all.
        per_trajectory: points taken from one trajectory.
        null_share: share of the points that get the null class.
        batch_size: trajectories sampled, and points run, at a time.
        seed: added to the run's seed for calibration alone, so that the calibration set can be varied while the noise
            of the evaluated samples stays.
    """

    num_samples: Samples
    per_trajectory: Count
    null_share: Share
    batch_size: Samples
    seed: int = 0

    @abstractmethod
    def kept_steps(self, trajectory: int, num_steps: int, seed: int) -> list[int]:
        """The step indices recorded of one trajectory, `per_trajectory` at most."""

    def settled(
        self, model: "DiffusionModel", sampler: "Sampler", dataset: "Source", seed: int
    ) -> "TrajectoryCalibration":
        """This choice, or the one that it makes of what the full-precision network does."""
        return self

    def choose(self, num_steps: int, seed: int, null_share: float) -> list[Point]:
        """The points, in the order in which they are run, shuffled so that each batch mixes timesteps.

        Args:
            num_steps: of the sampler.
            seed: the run's.
            null_share: share of the null class among these points, instead of the config's; spread evenly over them.
        """
        states = self.states(self.num_samples, num_steps, seed)
        null = [int((n + 1) * null_share) > int(n * null_share) for n in range(len(states))]
        return [Point(*state, null=is_null) for state, is_null in zip(states, null, strict=True)]

    def states(self, count: int, num_steps: int, seed: int) -> list[tuple[int, int]]:
        """Trajectory and step of `count` shuffled states, from as few trajectories as possible."""
        trajectories = ceil(count / min(self.per_trajectory, num_steps))
        found = [(i, step) for i in range(trajectories) for step in self.kept_steps(i, num_steps, seed)]
        found.sort(key=lambda state: (state[0] // self.batch_size, state[1], state[0]))
        order = np.random.default_rng([seed, self.seed]).permutation(len(found))
        return [found[i] for i in order[:count]]

    def collect(self, model: "DiffusionModel", sampler: "Sampler", dataset: "Source", seed: int) -> CalibrationData:
        """Sample the chosen points in full precision."""
        timesteps = sampler.timesteps(model)
        # Without guidance the network never sees the null class.
        points = self.choose(len(timesteps), seed, self.null_share if sampler.guide(model).uses_null else 0.0)
        states = {(point.trajectory, point.step): torch.empty(0) for point in points}
        last: dict[int, int] = {}
        for trajectory, step in states:
            last[trajectory] = max(step, last.get(trajectory, 0))
        longest_last = sorted(last, key=lambda trajectory: (last[trajectory], trajectory))
        labels: dict[int, int] = {}
        batches = [longest_last[at : at + self.batch_size] for at in range(0, len(longest_last), self.batch_size)]
        bar = progress(total=sum(last[batch[-1]] + 1 for batch in batches), desc="calibrating", unit="step")
        for batch in batches:
            indices = [CALIBRATION + i for i in batch]
            classes = dataset.labels(indices, seed + self.seed)
            labels |= zip(batch, classes.tolist(), strict=True)
            end = last[batch[-1]]

            def record(step: int, timestep: Time, x: Tensor, output: Tensor | None, batch=batch) -> None:
                for row, trajectory in enumerate(batch):
                    if (trajectory, step) in states:
                        states[trajectory, step] = x[row].float().cpu()
                bar.update()

            x = sampler.sample(model, indices, classes, seed + self.seed, callback=record, until=end)
            record(end, timesteps[end], x, None)
        bar.close()
        return CalibrationData(
            torch.stack([states[p.trajectory, p.step] for p in points]),
            torch.tensor([timesteps[p.step] for p in points]),
            torch.tensor([model.null_class if p.null else labels[p.trajectory] for p in points]),
            self.batch_size,
            torch.tensor([[p.trajectory, p.step] for p in points]),
            timesteps,
        )


class UniformCalibration(TrajectoryCalibration):
    """Evenly spaced steps, shifted from one trajectory to the next so that all steps occur."""

    def kept_steps(self, trajectory: int, num_steps: int, seed: int) -> list[int]:
        """The step indices recorded of one trajectory."""
        count = min(self.per_trajectory, num_steps)
        stride = num_steps / count
        shift = trajectory % ceil(stride)
        return sorted({(int(i * stride) + shift) % num_steps for i in range(count)})


class PairedCalibration(TrajectoryCalibration):
    """The same evenly spaced steps of each trajectory, the noisiest first (Q-Diffusion, PTQ4DiT).

    A state that gets the null class also occurs with its own class, as in classifier-free guidance. With the share 0.5
    all states are such pairs, and half as many trajectories are sampled.
    """

    def __post_init__(self) -> None:
        """See `TrajectoryCalibration`; there cannot be more null points than others."""
        super().__post_init__()
        if self.null_share > 0.5:
            raise UserError(f"calibration.null_share={self.null_share}; pairs have a share of 0 to 0.5")

    def kept_steps(self, trajectory: int, num_steps: int, seed: int) -> list[int]:
        """The step indices recorded of every trajectory."""
        count = min(self.per_trajectory, num_steps)
        return [int(i * num_steps / count) for i in range(count)]

    def choose(self, num_steps: int, seed: int, null_share: float) -> list[Point]:
        """See `TrajectoryCalibration`; the two points of a pair follow each other."""
        nulls = int(self.num_samples * null_share)
        states = self.states(self.num_samples - nulls, num_steps, seed)
        pairs = [
            [Point(*state, null=False), Point(*state, null=True)][: 1 + (n < nulls)] for n, state in enumerate(states)
        ]
        return [point for pair in pairs for point in pair]


class RandomCalibration(TrajectoryCalibration):
    """Steps drawn anew, without replacement, for every trajectory."""

    def chances(self, num_steps: int) -> Sequence[float] | None:
        """The probability of each step; None: all are equal."""
        return None

    def kept_steps(self, trajectory: int, num_steps: int, seed: int) -> list[int]:
        """The step indices recorded of one trajectory."""
        rng = np.random.default_rng([seed, self.seed, trajectory])
        count = min(self.per_trajectory, num_steps)
        return sorted(rng.choice(num_steps, count, replace=False, p=self.chances(num_steps)).tolist())


@dataclass(frozen=True, kw_only=True)
class NormalCalibration(RandomCalibration):
    """Steps drawn from a normal distribution of the time, skewed towards the image (PTQ4DM, arXiv 2211.15736: NDTC).

    t / T is drawn with the given mean and deviation and clipped to [0, 1], which is divided into as many equal parts as
    the sampler has steps. States are those of the denoising trajectory, not noised data. With several points a
    trajectory, these differ.

    Args:
        mean: of t / T; 0 is the image. The paper: at most 0.5; its code: 0.4.
        deviation: of t / T.
    """

    mean: float = 0.4
    deviation: Annotated[float, Gt(0), "0.4 in the paper's code"] = 0.4

    def chances(self, num_steps: int) -> Sequence[float]:
        """The probability of each step, the noisiest first."""
        edges = [(i / num_steps - self.mean) / self.deviation for i in range(1, num_steps)]
        below = [0.0, *(0.5 * (1 + erf(edge / sqrt(2))) for edge in edges), 1.0]
        # A step of probability 0 would be missing where a trajectory gives more points than there are likely steps.
        chances = np.maximum(np.diff(below)[::-1], 1e-12)
        return chances / chances.sum()


@dataclass(frozen=True, kw_only=True)
class NoCalibration:
    """No data; parts of a recipe that need some raise an error. It has the keys of the other options, all unused."""

    num_samples: int = 0
    per_trajectory: int = 1
    null_share: float = 0.0
    batch_size: int = 1
    seed: int = 0
