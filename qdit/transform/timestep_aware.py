"""A separate transform for each range of timesteps, measured on the calibration points of that range.

ViDiT-Q's first version (arXiv 2406.02540v1, and its release until August 2024) balances channels in this way, because
the imbalance of a DiT's channels changes with the timestep:

    r_j = s(X⁽ᵍ⁾)_j^α / s(W)_j^(1-α)     x ← x / r⁽ᵍ⁾     W⁽ᵍ⁾ = W diag(r⁽ᵍ⁾)     in range g

The released code scales and rounds W anew in every forward pass, and, by mistake, with the step sizes of the first
range in all of them. Here each range is a fit of its own, with its basis and its data, for which each weight is rounded
once (`qdit.fitting`). At run time the clock, which holds the current timestep, picks the range.

Nothing is folded: a modulation that had the factors folded into it would differ from range to range, and a copy in full
precision would have to be kept for each. The inputs are scaled at run time. Left out: transforms that take nothing from
data, because they would be the same at all times.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, cast

from annotated_types import Ge
from torch import Tensor, nn

from qdit.calibration import CalibrationData
from qdit.checked import Checked
from qdit.errors import UserError
from qdit.ledger import RunTime
from qdit.model.base import DiffusionModel, Fold, Site
from qdit.model.roles import meant
from qdit.nn.switch import Now, TimedLinear
from qdit.quant.time_groups import ALL, Groups, Time, edge, equal_starts, split
from qdit.transform.base import Rewrite, Transform
from qdit.transform.trial import Trial


@dataclass(frozen=True)
class RewriteByRange(Rewrite):
    """A rewrite whose layers are those of the range that the clock shows; computes the original at every time."""

    groups: Groups = ALL
    """The ranges."""
    parts: tuple[Rewrite, ...] = ()
    """The rewrite of each, ascending in time; any of them computes the original at every time, too."""


class Unabsorbing:
    """A model into whose layers nothing can be folded, so that a transform changes all inputs at run time."""

    def __init__(self, model: DiffusionModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def folds(self) -> list[Fold]:
        """See `DiffusionModel`."""
        return []


def unabsorbing(model: DiffusionModel) -> DiffusionModel:
    """`model` without folds."""
    return cast(DiffusionModel, Unabsorbing(model))


def points_within(data: CalibrationData, groups: Groups, number: int) -> CalibrationData:
    """The calibration points of one range of timesteps, in their order; the sampler's steps are the range's, too."""
    chosen = groups.of(data.t) == number
    visited = [t for t in data.timesteps if number == sum(t >= edge for edge in groups.edges)]
    origin = None if data.origin is None else data.origin[chosen]
    return replace(data, x=data.x[chosen], t=data.t[chosen], y=data.y[chosen], origin=origin, visited=visited)


@dataclass(frozen=True, kw_only=True)
class TimestepAware(Checked):
    """A transform that is measured, and done, in each range of timesteps apart.

    Args:
        name: what tables call it.
        ranges: of the sampling steps, of equal length; 1 is the transform itself, all at run time.
        each: the transform.

    Raises:
        UserError: fewer than one range, or a transform that has ranges itself or takes nothing from data.
    """

    name: str
    ranges: Annotated[int, Ge(1), "1 is one basis for all steps"]
    each: Transform

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.each, TimestepAware) or not self.each.needs_calibration:
            raise UserError(
                "transform.each must be a transform that takes something from data, which may differ from range to "
                "range, such as smooth or smooth_hadamard (transform=by_range transform@transform.each=smooth_hadamard)"
            )

    @property
    def parts(self) -> dict[str, Transform]:
        """See `Transform`."""
        return {self.name: self}

    @property
    def needs_calibration(self) -> bool:
        """See `Transform`."""
        return True

    @property
    def roles(self) -> Sequence[str]:
        """See `Transform`."""
        return self.each.roles

    def bases(self, role: str) -> int:
        """See `Transform`: one for each range, where the transform has the role."""
        return self.ranges if meant(role, self.roles) else 1

    def problems(self, sites: list[Site]) -> list[str]:
        """See `Transform`."""
        return [problem.replace("transform.", "transform.each.", 1) for problem in self.each.problems(sites)]

    def carriers(self, model: DiffusionModel, sites: list[Site]) -> dict[str, str | None]:
        """See `Transform`: nothing is folded."""
        return self.each.carriers(unabsorbing(model), sites)

    def run_time(self, model: DiffusionModel, sites: list[Site]) -> list[RunTime]:
        """See `Transform`: what is stored is stored for each range."""
        left = self.each.run_time(unabsorbing(model), sites)
        return [
            replace(each, storage_bits=each.storage_bits * self.ranges, weight_bits=each.weight_bits * self.ranges)
            for each in left
        ]

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """What the transform measures on the points of each range; keys are `first-last timestep/key`.

        Raises:
            UserError: there are fewer sampling steps than ranges, or a range without points.
        """
        data = collect()
        groups, found = self.groups(data), {}
        for number in range(groups.count):
            part = points_within(data, groups, number)
            measured = self.each.measure(unabsorbing(model), sites, lambda part=part: part, trial)
            place = f"{part.timesteps[0]}-{part.timesteps[-1]}"
            found |= {f"{place}/{key}": value for key, value in measured.items()}
        return found

    def groups(self, data: CalibrationData) -> Groups:
        """The ranges of the sampler behind the calibration data, as groups of timesteps; errors as in `measure`."""
        steps = len(data.timesteps)
        if steps < self.ranges:
            raise UserError(
                f"transform.ranges={self.ranges}, and the sampler has {steps} steps; at most so many ranges, or more "
                "of sampler.steps"
            )
        groups = split(data.timesteps, equal_starts(steps, self.ranges))
        points = groups.of(data.t).bincount(minlength=groups.count)
        if empty := int(points.eq(0).sum()):
            raise UserError(
                f"{empty} of {groups.count} ranges of timesteps have no calibration points; use more of "
                f"calibration.num_samples (now {len(data.t)}) or calibration.per_trajectory, or fewer transform.ranges"
            )
        return groups

    def rewrite(self, model: DiffusionModel, sites: list[Site], measured: dict[str, Tensor]) -> Rewrite:
        """See `Transform`; the one of a single range has plain layers, and that of no input none."""
        by_range: dict[tuple[Time, Time], dict[str, Tensor]] = {}
        for key, value in measured.items():
            place, _, own = key.partition("/")
            by_range.setdefault(_ends(place), {})[own] = value
        ranges = sorted(by_range)
        parts = tuple(self.each.rewrite(unabsorbing(model), sites, by_range[ends]) for ends in ranges)
        if len(parts) < 2:
            return parts[0] if parts else Rewrite()
        groups = Groups(tuple(edge(below[1], above[0]) for below, above in pairwise(ranges)))
        now = Now(model.clock, groups)
        layers: dict[str, nn.Module] = {
            name: TimedLinear([part.layers[name] for part in parts], range(len(parts)), now).eval()
            for name in parts[0].layers
        }
        return RewriteByRange(layers, groups=groups, parts=parts)


def _ends(place: str) -> tuple[Time, Time]:
    """The first and the last timestep of a range, of its name.

    >>> _ends("0-450"), _ends("8.9e-05-450.5")
    ((0, 450), (8.9e-05, 450.5))
    """
    first, last = (int(end) if end.isdigit() else float(end) for end in re.split("(?<!e)-", place))
    return first, last
