"""The interface of transforms: equivalent rewrites of the network (smoothing, rotation) that are easier to quantize.

A transform rewrites linear layers without changing what the network computes: W x = (W T)(T⁻¹ x) for an invertible T on
the input channels. W T is the weight that will be rounded. T⁻¹ is folded (fused) into the layer that produces the input
where the arithmetic allows it (`qdit.model.base.Fold`), and is applied to the input at run time elsewhere. Scales
(`qdit.transform.scaling`) can be folded into adaLN's modulation and into plain output rows; rotations
(`qdit.transform.rotation`) into plain rows whose channels may be mixed, which are an attention's values of one head.

Everything that follows a transform in a fit (ranges, Hessians, rounding, reports of layers) runs on the rewritten
network, so that a weight is quantized once, in the basis in which it will be used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from qdit.calibration import CalibrationData
from qdit.errors import UserError
from qdit.ledger import RunTime
from qdit.model.base import DiffusionModel, Fold, Site
from qdit.nn.replace import replaced
from qdit.storage.shelf import Place, Shelf
from qdit.transform.trial import Trial

MEASURED = "transform"


@dataclass(frozen=True)
class Folded:
    """A change of an input's channels that is in its sources: its readers know no others.

    What is added beside a layer, an adapter (LoRA), is in the original's channels, and has to be changed as the layer
    was: where it reads the input as the readers, and where it makes the input as the sources.
    """

    fold: Fold
    steps: tuple[nn.Module, ...]
    """In their order. A `Scale` or `Rotation` is what was done to each row of the readers' weights; the sources' output
    rows are rotated alike, and divided by the scale. A `Shift` was added to the input."""


@dataclass(frozen=True)
class Rewrite:
    """A network that computes the same as the original, as what differs from it; the empty one is the original."""

    layers: dict[str, nn.Module] = field(default_factory=dict)
    """Full-precision layers by path: the transformed sites, and the neighbours that absorb what is undone."""
    inputs: dict[str, nn.Module] = field(default_factory=dict)
    """What is done to a site's input at run time, before it is rounded; its layer in `layers` does it too."""
    origin: "Origin | None" = None
    """What it was made of."""
    folded: tuple[Folded, ...] | None = ()
    """What is in the sources of inputs; None where that is not known."""

    @contextmanager
    def installed(self, model: DiffusionModel) -> Iterator[DiffusionModel]:
        """`model` rewritten, in full precision; the original modules are back afterwards."""
        with replaced(model.denoiser, self.layers):
            yield model


class Transform(Protocol):
    """A function-preserving rewrite. Config only: the model, the sites and the data arrive as arguments."""

    @property
    def parts(self) -> "Mapping[str, Transform]":
        """The transforms that it is made of, by name, in their order; a simple one is its own only part."""
        ...

    @property
    def roles(self) -> Sequence[str]:
        """Of the sites that are transformed, if they are quantized (see `qdit.model.roles.ROLES`)."""
        ...

    @property
    def needs_calibration(self) -> bool:
        """Whether `measure` needs data."""
        ...

    def bases(self, role: str) -> int:
        """In how many bases over time a site with a role keeps its weight."""
        ...

    def problems(self, sites: list[Site]) -> list[str]:
        """What cannot work on a model with these sites, one sentence each."""
        ...

    def carriers(self, model: DiffusionModel, sites: list[Site]) -> dict[str, str | None]:
        """For each transformed site, the layer that the change of its input is folded into; None: done at run time."""
        ...

    def run_time(self, model: DiffusionModel, sites: list[Site]) -> list[RunTime]:
        """The changes of inputs that cannot be folded into weights, with their cost."""
        ...

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """Everything that the rewrite takes from data, by name; a resumed fit reads it back instead of measuring again.

        Args:
            model: the full-precision model.
            sites: the quantized sites.
            collect: makes the calibration data.
            trial: quantizes weights and inputs as the recipe would, for factors that are chosen by output error.
        """
        ...

    def rewrite(self, model: DiffusionModel, sites: list[Site], measured: dict[str, Tensor]) -> Rewrite:
        """The rewritten layers; the model is read, not changed."""
        ...


@dataclass(frozen=True)
class Origin:
    """What a rewrite was made of, so that it can be made again without data."""

    transform: Transform
    sites: list[str]
    """Names of the quantized sites."""
    measured: dict[str, Tensor]

    def rewrite(self, model: DiffusionModel) -> Rewrite:
        """The rewrite of the model that this was measured on."""
        sites = [site for site in model.sites() if site.name in set(self.sites)]
        return replace(self.transform.rewrite(model, sites, self.measured), origin=self)


def joined(rewrites: Sequence[Rewrite]) -> Rewrite:
    """The rewrites of several networks in one module, by one transform, as one, which is made again as one."""
    layers = {name: layer for each in rewrites for name, layer in each.layers.items()}
    inputs = {name: change for each in rewrites for name, change in each.inputs.items()}
    origins = [each.origin for each in rewrites if each.origin is not None]
    if not origins:
        return Rewrite(layers, inputs)
    measured = {key: tensor for origin in origins for key, tensor in origin.measured.items()}
    origin = Origin(origins[0].transform, [name for origin in origins for name in origin.sites], measured)
    known = [each.folded for each in rewrites if each.folded is not None]
    folded = tuple(fold for folds in known for fold in folds) if len(known) == len(rewrites) else None
    return Rewrite(layers, inputs, origin, folded)


@torch.no_grad()
def rewritten(
    transform: Transform | None,
    model: DiffusionModel,
    sites: list[Site],
    collect: Callable[[], CalibrationData],
    trial: Trial,
    folder: Place | None,
) -> Rewrite:
    """Measure, or read what an earlier run of the same fit measured, and rewrite.

    Args:
        transform: None leaves the network as it is.
        model, sites, collect, trial: see `Transform.measure`.
        folder: where measurements are kept; None keeps none.

    Raises:
        UserError: the measurements that are kept are of another model or transform.
    """
    if transform is None:
        return Rewrite()
    shelf = Shelf.of(folder) if folder else None
    measured = shelf.load(MEASURED) if shelf else None
    if shelf and measured is not None:
        expected = transform.carriers(model, sites).keys()
        if not {key.rpartition("/")[2] for key in measured} <= expected:
            raise UserError(f"{shelf.path(MEASURED)} is of another model or transform; delete it, and it is made again")
    else:
        measured = transform.measure(model, sites, collect, trial)
        if shelf:
            shelf.save(MEASURED, measured)
    return Origin(transform, [site.name for site in sites], measured).rewrite(model)
