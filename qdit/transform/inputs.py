"""The inputs that a transform changes: each is one tensor, and has one or several consumers (*readers*: q, k and v)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qdit.calibration import CalibrationData
from qdit.calibration.data import Pass
from qdit.calibration.observers import attended_rows, changed_input, watching
from qdit.calibration.rows import ChosenRows
from qdit.model.base import DiffusionModel, Fold, Site, readers_of_inputs
from qdit.model.roles import is_role, meant
from qdit.seeding import generator


@dataclass(frozen=True)
class Input:
    """An input that is transformed: the layers that read it, in any block, and those of them that are quantized."""

    readers: tuple[Site, ...]
    quantized: tuple[Site, ...]

    @property
    def name(self) -> str:
        """The first quantized reader's."""
        return self.quantized[0].name

    @property
    def channels(self) -> int:
        """Its width."""
        return self.quantized[0].in_features


def chosen_inputs(model: DiffusionModel, sites: list[Site], roles: list[str]) -> list[Input]:
    """The inputs of quantized `sites` with one of the roles, in forward order."""
    wanted = {site.name for site in sites if meant(site.role, roles)}
    groups = readers_of_inputs(model.sites())
    found = (Input(tuple(readers), tuple(s for s in readers if s.name in wanted)) for readers in groups)
    return [each for each in found if each.quantized]


def fold_of(model: DiffusionModel, read: Input) -> Fold | None:
    """The fold that makes an input, if there is one that makes it and nothing else."""
    names = tuple(site.name for site in read.readers)  # in forward order, as a fold's
    return next((fold for fold in model.folds() if fold.readers == names), None)


def carriers_of(folds: Mapping[Input, Fold | None]) -> dict[str, str | None]:
    """By quantized reader of each input, the layers of its fold; None where it has none."""
    return {site.name: fold.layers if fold else None for each, fold in folds.items() for site in each.quantized}


def role_problems(roles: list[str], sites: list[Site]) -> list[str]:
    """Roles that the model does not have, one sentence each."""
    known = sorted({s.role for s in sites})
    return [f"transform.roles has {r!r}; this model has {', '.join(known)}" for r in roles if not is_role(r)]


@torch.no_grad()
def watch_rows(
    model: DiffusionModel,
    inputs: list[Input],
    data: CalibrationData,
    see: Callable[[Input, Float[Tensor, "rows channels"]], None],
) -> None:
    """Observe inputs: call `see(input, rows)` for every batch, after what a transformed layer does to them first."""
    by_site = {each.name: each for each in inputs}
    calls = Pass(model, data)

    def reduce(site: Site, layer: nn.Module, x: Tensor, _: Tensor) -> None:
        rows = attended_rows(model, site.name, calls.y, changed_input(layer, x))
        see(by_site[site.name], rows.reshape(-1, rows.shape[-1]))

    with watching(model, [each.quantized[0] for each in inputs], reduce):
        calls.run()


def total_rows(model: DiffusionModel, read: Input, data: CalibrationData) -> int:
    """How many rows of an input `watch_rows` shows."""
    site = read.quantized[0]
    attended = model.attended(site.name, data.y)
    return len(data.x) * site.tokens if attended is None else int(attended.sum())


def row_sample(total: int, rows: int, seed: int) -> ChosenRows:
    """A random sample of the rows (tokens) of one input, over all calibration points, on the CPU.

    Args:
        total: how many rows there are.
        rows: how many rows are kept; all, if there are fewer.
        seed: of the choice; the same rows for the same seed and number of rows.
    """
    order = torch.randperm(total, generator=generator(seed, "rows", 0))
    return ChosenRows(order[:rows].sort().values, "cpu")


def sample_rows(
    model: DiffusionModel, inputs: list[Input], data: CalibrationData, rows: int, seed: int
) -> dict[str, Float[Tensor, "rows channels"]]:
    """A seeded sample of the rows of each input in full precision, by the input's name; arguments as `row_sample`."""
    samples = {each.name: row_sample(total_rows(model, each, data), rows, seed) for each in inputs}
    watch_rows(model, inputs, data, lambda read, x: samples[read.name].add(x))
    return {name: sample.value() for name, sample in samples.items()}
