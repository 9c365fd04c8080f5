"""The inputs that a transform changes: each has one producer, and one or several consumers (*readers*: q, k and v)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qdit.calibration import CalibrationData
from qdit.calibration.observers import changed_input, watching
from qdit.model.base import DiffusionModel, Site
from qdit.model.roles import chosen as role_chosen
from qdit.model.roles import is_role
from qdit.seeding import generator


@dataclass(frozen=True)
class Input:
    """An input that is transformed: the layers that read it, and those among them that are quantized."""

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
    wanted = {site.name for site in sites if role_chosen(site.role, roles)}
    groups = groupby(model.sites(), key=lambda s: (s.block, s.role, s.stage))
    every = (tuple(readers) for _, readers in groups)
    found = (Input(readers, tuple(s for s in readers if s.name in wanted)) for readers in every)
    return [each for each in found if each.quantized]


def folded_into(model: DiffusionModel, inputs: list[Input]) -> dict[str, str | None]:
    """By quantized reader, the layer into which a change of its input's channels can be folded, or None."""
    producers = model.producers()
    found: dict[str, str | None] = {}
    for each in inputs:
        producer = producers.get(each.name)
        found |= dict.fromkeys((site.name for site in each.quantized), producer.layer if producer else None)
    return found


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

    def reduce(site: Site, layer: nn.Module, x: Tensor, _: Tensor) -> None:
        rows = changed_input(layer, x)
        see(by_site[site.name], rows.reshape(-1, rows.shape[-1]))

    with watching(model, [each.quantized[0] for each in inputs], reduce):
        for x, t, y in data.batches(model):
            model.denoise(x, t, y)


class RowSample:
    """A random sample of the rows (tokens) of one input, over all calibration points, on the CPU.

    Args:
        read: the input.
        points: how many the calibration data has.
        rows: how many rows are kept; all, if there are fewer.
        seed: of the choice; the same rows for the same seed and number of rows.
    """

    def __init__(self, read: Input, points: int, rows: int, seed: int) -> None:
        order = torch.randperm(points * read.quantized[0].tokens, generator=generator(seed, "rows", 0))
        self.chosen, self.seen = order[:rows].sort().values, 0
        self.kept: list[Tensor] = []

    def add(self, rows: Float[Tensor, "rows channels"]) -> None:
        """Take in the rows of the next batch."""
        here = self.chosen[(self.chosen >= self.seen) & (self.chosen < self.seen + len(rows))] - self.seen
        self.kept.append(rows[here.to(rows.device)].float().cpu())
        self.seen += len(rows)

    def value(self) -> Float[Tensor, "rows channels"]:
        """The sample, float32."""
        return torch.cat(self.kept)


def sample_rows(
    model: DiffusionModel, inputs: list[Input], data: CalibrationData, rows: int, seed: int
) -> dict[str, Float[Tensor, "rows channels"]]:
    """A seeded sample of the rows of each input in full precision, by the input's name; arguments as `RowSample`."""
    samples = {each.name: RowSample(each, len(data.x), rows, seed) for each in inputs}
    watch_rows(model, inputs, data, lambda read, x: samples[read.name].add(x))
    return {name: sample.value() for name, sample in samples.items()}
