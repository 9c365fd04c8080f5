"""A method: a recipe with a search for its policy before it and a correction of the output after it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qdit.calibration import CalibrationData
from qdit.calibration.density import DensityCalibration
from qdit.correction import Correction, corrected
from qdit.errors import UserError
from qdit.fitting import fit_policy
from qdit.model.base import DiffusionModel, Site
from qdit.policies import Policy
from qdit.quantized import Quantized
from qdit.recipes import Recipe
from qdit.search.base import Search
from qdit.setting import Setting
from qdit.storage.shelf import Place
from qdit.transform.timestep_aware import TimestepAware


@dataclass(frozen=True, kw_only=True, repr=False)
class Method(Recipe):
    """A recipe with a search, which finds its policy, and a correction of its output; either may be None."""

    search: Search | None = None
    """Chooses group sizes or bits; None gives all sites those of `weight`, `activation` and the two bit-widths."""
    correction: Correction | None = None
    """Is fitted to the quantized model's predictions, and corrects them; None leaves them."""

    def problems(self, sites: list[Site]) -> list[str]:
        """What cannot work on a model with these sites, one sentence each."""
        found = super().problems(sites)
        if self.search is not None and getattr(self.repair, "inputs", None) == "quantized":
            found.append(
                "repair.inputs=quantized repairs layers for the network that they are fitted in, and a search puts "
                "them into others; use repair.inputs=full_precision, or search=none"
            )
        return found or (self.search.problems(self, sites) if self.search is not None else [])

    def unfit(self, model: DiffusionModel) -> list[str]:
        """What cannot work on a model whose networks take turns, one sentence each."""
        if not (turns := model.turns()):
            return []
        many, found = f"this model has {len(turns)} networks, which take turns over the timesteps", list[str]()
        if self.search is not None:
            found.append(f"{many}, and a search allocates bits or group sizes of one; use search=none")
        if isinstance(self.transform, TimestepAware):
            found.append(
                f"{many}, and are rewritten once each; use transform.each alone, such as transform=smooth_hadamard"
            )
        if isinstance(self.calibration, DensityCalibration):
            found.append(f"{many}, whose features are not alike at any time; use calibration=uniform")
        return found

    def misfits(self, sites: list[Site]) -> list[str]:
        """See `Recipe`; a search has group sizes of its own."""
        return super().misfits(sites) if self.search is None else []

    @property
    def needy(self) -> list[str]:
        """See `Recipe`."""
        return super().needy + ["search"] * (self.search is not None and self.search.needs_calibration)

    def plan(self, sites: list[Site]) -> Policy:
        """See `Recipe`; with a search, a policy that it might find."""
        return super().plan(sites) if self.search is None else self.search.plan(self, sites)


@torch.no_grad()
def quantize(
    model: DiffusionModel,
    method: Method,
    collect: Callable[[], CalibrationData],
    folder: Place | None = None,
    setting: Setting | None = None,
) -> Quantized:
    """Fit a method to a model; search a policy first and correct the output last, if the method has these parts.

    Args:
        model: the full-precision model; it is read, not changed.
        method: the parts.
        collect: makes the calibration data; called only if a part needs it.
        folder: where finished blocks are saved, and found again by the same fit; None saves nothing.
        setting: the run around a search or a correction; not needed without them.

    Raises:
        UserError: the method does not fit the model.
    """
    problems = method.problems(model.sites()) + method.unfit(model)
    if problems:
        raise UserError(*problems)
    if method.search is None:
        tracker = setting.tracker if setting is not None else None
        quantized = fit_policy(model, method, method.plan(model.sites()), collect, folder, tracker=tracker)
    elif setting is None:
        raise ValueError("a search needs its setting")
    else:
        quantized = method.search.quantize(model, method, collect, folder, setting)
    return corrected(method.correction, model, quantized, setting)
