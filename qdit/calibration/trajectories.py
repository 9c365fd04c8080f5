"""Whole calibration trajectories in memory, of which any recipe picks the points that its calibration part chooses.

A run samples only the trajectories, and only as far, as its recipe needs (`qdit.calibration.calibration`). Whoever
tries several recipes on one model samples once instead, and keeps every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qdit.calibration.calibration import NoCalibration
from qdit.calibration.data import CalibrationData
from qdit.dataset.base import Source
from qdit.errors import UserError
from qdit.model.base import DiffusionModel
from qdit.model.conditions import Conditions
from qdit.model.loaded import Loaded
from qdit.model.loaded_text import LoadedText
from qdit.sampler.sampler import Sampler
from qdit.seeding import CALIBRATION


@dataclass(frozen=True, kw_only=True)
class Trajectories(CalibrationData):
    """Every state of some trajectories, one after the other: point i · steps + s is step s of trajectory i."""

    weights: str
    """Digest of the weights of the network that made them."""
    seed: int
    """Of noise and classes."""
    null_class: int
    """The label that stands for no class."""
    uses_null: bool
    """Whether guidance shows the network that label."""
    sampler: Sampler
    dataset: Source
    """Whose classes were drawn."""
    schedule: dict[str, Any]
    """The noise schedule of the network's training (`DiffusionModel.scheduler_config`)."""
    autoencoder: Any = None
    """The pipeline's, for a search that looks at images."""
    table: Conditions | None = None
    """What the text encoder made of the prompts that `y` numbers; None of a class-conditional model."""
    facts: dict[str, int] = field(default_factory=dict)
    """Sizes that the transformer's config does not say (`qdit.model.loaded.Loaded.facts`)."""

    def picked(self, source: Any, model: DiffusionModel) -> CalibrationData:
        """The points that a recipe's calibration part chooses; those of a run, where seeds and sampler are the same.

        Args:
            source: the part. Its own seed changes the choice, and not the noise.
            model: in full precision, of which some parts look at features.

        Raises:
            UserError: it needs more trajectories than there are.
        """
        if source is None or isinstance(source, NoCalibration):
            return self
        steps = len(self.visited or ())
        source = source.settled(model, self.sampler, self.dataset, self.seed)
        points = source.choose(steps, self.seed, source.null_share if self.uses_null else 0.0)
        needed, there = max(point.trajectory for point in points) + 1, len(self.x) // steps
        if needed > there:
            raise UserError(
                f"the recipe takes {len(points)} points of {needed} trajectories, and the data has {there}: calibrate "
                f"with num_samples={needed}, or take fewer points, calibration.num_samples="
                f"{len(points) * there // needed}"
            )
        rows = torch.tensor([point.trajectory * steps + point.step for point in points])
        null = torch.tensor([point.null for point in points])
        return CalibrationData(
            self.x[rows],
            self.t[rows],
            self.y[rows].masked_fill(null, self.null_class),
            source.batch_size,
            torch.tensor([[point.trajectory, point.step] for point in points]),
            self.visited,
        )

    def __repr__(self) -> str:
        steps = len(self.visited or ())
        return f"Trajectories({len(self.x) // max(1, steps)} × {steps} states {tuple(self.x.shape[1:])})"


@torch.no_grad()
def trajectories(
    model: DiffusionModel,
    sampler: Sampler,
    dataset: Source,
    count: int,
    seed: int,
    batch_size: int,
    weights: str,
    labels: Sequence[int] | None = None,
) -> Trajectories:
    """Sample trajectories in full precision; their noise is that of a run's calibration.

    Args:
        model, sampler, dataset: what makes them.
        count: of trajectories.
        seed: of noise and classes.
        batch_size: trajectories sampled at a time, and points run at a time.
        weights: see `Trajectories`.
        labels: the classes, repeated in order if there are fewer than `count`; None draws them as the data set does.
    """
    told = sampler.timesteps(model)
    parts: list[Tensor] = []
    indices = [CALIBRATION + i for i in range(count)]
    classes = (
        dataset.labels(indices, seed)
        if labels is None
        else torch.tensor([labels[i % len(labels)] for i in range(count)])
    )
    for chunk in torch.arange(count).split(batch_size):
        states: list[Tensor] = []
        note = lambda step, t, x, out, states=states: states.append(x.float().cpu())  # noqa: E731
        sampler.sample(model, [indices[i] for i in chunk], classes[chunk], seed, callback=note)
        parts.append(torch.stack(states, 1).flatten(0, 1))
    origin = torch.cartesian_prod(torch.arange(count), torch.arange(len(told)))
    return Trajectories(
        torch.cat(parts),
        torch.tensor(told).repeat(count),
        classes.repeat_interleave(len(told)),
        batch_size,
        origin,
        told,
        weights=weights,
        seed=seed,
        null_class=model.null_class,
        uses_null=sampler.guide(model).uses_null,
        sampler=sampler,
        dataset=dataset,
        schedule=model.scheduler_config(),
        autoencoder=getattr(model, "autoencoder", None),
        table=model.table if isinstance(model, LoadedText) else None,
        facts=model.facts if isinstance(model, Loaded) else {},
    )
