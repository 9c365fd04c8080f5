"""Several transforms in the order given, each applied to the network as the ones before it left it.

The weights become W T₁ T₂ …; the input is changed at run time by those inverses that cannot be folded into the layer
that produces it, T₁⁻¹ first. ViDiT-Q (arXiv 2406.02540) is such a chain: scaling removes the static part of the
imbalance between channels, rotation spreads the part that varies with the timestep. The weight is rounded once, after
all of them; ViDiT-Q's release rounds it after the scaling and again after the rotation, which costs several decibels.

Once a step changes an input at run time, later steps can no longer fold their change of that input into the layer that
produces it, because the run-time change comes in between. They then act at run time, too.

A step that chooses its factors by output error takes that error with the following steps applied, where these are known
without data: a scaling's α is the best one under the rotation that follows, or under the better of rotation and none
where the rotation itself is a choice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.errors import UserError
from qdit.ledger import RunTime
from qdit.model.base import DiffusionModel, Fold, Site
from qdit.transform.base import Rewrite, Transform
from qdit.transform.folding import Draft, Step
from qdit.transform.timestep_aware import Unabsorbing
from qdit.transform.trial import Trial, Way


@runtime_checkable
class Foreseen(Protocol):
    """A transform that can say without data what it may do to input rows, so that earlier steps can allow for it."""

    def ways(self, model: DiffusionModel, sites: list[Site]) -> dict[str, tuple[Way, ...]]:
        """The orthogonal changes among which it will choose, by site; all readers of one input have the same number."""
        ...


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Transforms in their order.

    Args:
        name: what tables call it.
        steps: the transforms by name, first to last.

    Raises:
        UserError: there is none, or one that changes with time.
    """

    name: str
    steps: dict[str, Step]

    def __post_init__(self) -> None:
        if not self.steps:
            raise UserError("transform.steps is empty; transform=none is the chain of nothing")
        if timed := [name for name, step in self.steps.items() if not hasattr(step, "edit")]:
            raise UserError(
                f"transform.steps.{timed[0]} changes with time and cannot be a step of a chain; let it hold the chain "
                "instead (transform=by_range transform@transform.each=smooth_hadamard)"
            )

    @property
    def parts(self) -> dict[str, Transform]:
        """See `Transform`."""
        return dict(self.steps)

    @property
    def roles(self) -> list[str]:
        """See `Transform`: of all steps."""
        return [role for step in self.steps.values() for role in step.roles]

    @property
    def needs_calibration(self) -> bool:
        """See `Transform`."""
        return any(step.needs_calibration for step in self.steps.values())

    def bases(self, role: str) -> int:
        """See `Transform`: one."""
        return 1

    def problems(self, sites: list[Site]) -> list[str]:
        """See `Transform`."""
        return [
            problem.replace("transform.", f"transform.steps.{name}.", 1)
            for name, step in self.steps.items()
            for problem in step.problems(sites)
        ]

    def carriers(self, model: DiffusionModel, sites: list[Site]) -> dict[str, str | None]:
        """See `Transform`: a layer (the last step's) only where every step's change of the input is folded into one."""
        found: dict[str, str | None] = {}
        for _, step, here in self._in_order(model, sites):
            for site, carrier in step.carriers(here, sites).items():
                found[site] = carrier if found.get(site, carrier) is not None else None
        return found

    def run_time(self, model: DiffusionModel, sites: list[Site]) -> list[RunTime]:
        """See `Transform`."""
        return [left for _, step, here in self._in_order(model, sites) for left in step.run_time(here, sites)]

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """Each step's measurements, on the network as the steps before rewrite it; keys are `step/input`."""
        collected, found, steps = cache(collect), {}, self._in_order(model, sites)
        for number, (name, step, here) in enumerate(steps):
            if step.needs_calibration:
                collected()  # on the original network
            ahead = trial
            for _, later, there in reversed(steps[number + 1 :]):
                if isinstance(later, Foreseen):
                    ahead = ahead.before(later.ways(there, sites))
            with self._drafted(model, sites, found, number).rewrite().installed(model):
                measured = step.measure(here, sites, collected, ahead)
            found |= {f"{name}/{key}": value for key, value in measured.items()}
        return found

    def edit(self, draft: Draft, sites: list[Site], measured: dict[str, Tensor]) -> None:
        """See `Step`."""
        self._edit(draft, sites, measured, len(self.steps))

    def rewrite(self, model: DiffusionModel, sites: list[Site], measured: dict[str, Tensor]) -> Rewrite:
        """See `Transform`."""
        return self._drafted(model, sites, measured, len(self.steps)).rewrite()

    def _drafted(self, model: DiffusionModel, sites: list[Site], measured: dict[str, Tensor], steps: int) -> Draft:
        """The model after the first `steps` of the steps."""
        draft = Draft(model)
        self._edit(draft, sites, measured, steps)
        return draft

    def _edit(self, draft: Draft, sites: list[Site], measured: dict[str, Tensor], steps: int) -> None:
        whole = draft.model
        for name, step, here in self._in_order(whole, sites)[:steps]:
            own = {k.removeprefix(f"{name}/"): v for k, v in measured.items() if k.startswith(f"{name}/")}
            draft.model = here
            step.edit(draft, sites, own)
        draft.model = whole

    def _in_order(self, model: DiffusionModel, sites: list[Site]) -> list[tuple[str, Step, DiffusionModel]]:
        """The steps by name, each with the model as the steps before it leave it."""
        found: list[tuple[str, Step, DiffusionModel]] = []
        changed: frozenset[str] = frozenset()
        for name, step in self.steps.items():
            here = cast(DiffusionModel, _Changed(model, changed)) if changed else model
            found.append((name, step, here))
            changed |= {left.site.name for left in step.run_time(here, sites) if not left.weight_bits}
        return found


class _Changed(Unabsorbing):
    """A model some of whose inputs are changed at run time, so that nothing more can be folded into what makes them."""

    def __init__(self, model: DiffusionModel, inputs: frozenset[str]) -> None:
        super().__init__(model)
        self._inputs = inputs

    def folds(self) -> list[Fold]:
        """See `DiffusionModel`."""
        return [fold for fold in self._model.folds() if self._inputs.isdisjoint(fold.readers)]
