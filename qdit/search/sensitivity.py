"""Sensitivities: how much harm a few quantized layers do, by paired samples with and without them.

ViDiT-Q (arXiv 2406.02540): the sensitivity of layer, bits and range of timesteps is the loss of its group's metric when
that layer alone is quantized, in that range alone. All measurements have the same noise and labels. The noise is
neither that of the evaluation nor that of the calibration; nor are the drawn labels of a model of classes. Prompts are
those of calibration where they have a file, and else may be the evaluated ones. The loss of each sample is kept, so
that differences have the standard error of paired differences. Each measurement is kept on disk.

Steps before the first quantized one are those of full precision: their outputs are recorded once and played back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import Annotated, Any, cast

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor, nn

from qdit.checked import Checked, Samples
from qdit.errors import UserError
from qdit.eval.per_sample import PairedMetric
from qdit.eval.samples import Drawn
from qdit.model.base import DiffusionModel
from qdit.nn.replace import replaced
from qdit.nn.switch import Now, TimedLinear
from qdit.sampler.draw import draw
from qdit.search.bit_space import BitSpace, Ranges
from qdit.search.metric_groups import MetricGroup, by_gene
from qdit.search.objective import warn_of_shared
from qdit.search.space import Gene
from qdit.search.variants import BitVariants
from qdit.seeding import SEARCH
from qdit.setting import Setting
from qdit.storage.journal import Entry, Journal
from qdit.storage.progress import progress

Cells = list[list[dict[int, NDArray[np.float64]]]]
"""For each gene and range, by bits: the loss of each sample."""


@dataclass(frozen=True, kw_only=True)
class Paired(Checked):
    """The samples behind a measurement.

    Args:
        num_samples: at least 2, for a standard error.
        batch_size: samples drawn at a time.
        seed: of their noise and labels, added to the run's.

    Raises:
        UserError: a number is too small.
    """

    num_samples: Annotated[int, Ge(2), Le(10_000_000), "a standard error needs two"] = 16
    batch_size: Samples = 16
    seed: int = 0


class Tape:
    """A model, called once a step, whose outputs before step `first` of each batch are played back; others are made.

    Args:
        model: makes them.
        steps: of a batch.
        played: the outputs of all batches, one behind the other; none plays nothing.
        first: the first step that is not played.
        recorded: where outputs that are made are kept, if anywhere.
    """

    def __init__(
        self, model: DiffusionModel, steps: int, played: list[Tensor], first: int, recorded: list[Tensor] | None
    ) -> None:
        self.model, self.steps, self.played, self.first, self.recorded = model, steps, played, first, recorded
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def denoise(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """See `DiffusionModel`."""
        number, self.calls = self.calls, self.calls + 1
        if self.played and number % self.steps < self.first:
            return self.played[number]
        output = self.model.denoise(x, t, y)
        if self.recorded is not None:
            self.recorded.append(output)
        return output


@dataclass
class Meter:
    """Measures layers; the transformed network must be installed meanwhile.

    Args:
        model: in full precision.
        setting: the run around.
        samples: which ones are drawn.
        journal: keeps the measurements on disk.
    """

    model: DiffusionModel
    setting: Setting
    samples: Paired
    journal: Journal
    known: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
    played: list[Tensor] | None = None
    """The outputs of full precision, by batch and step; none where a step has several; None before they were made."""

    def __post_init__(self) -> None:
        for entry in self.journal.entries:
            self.known[entry["what"], entry["metric"]] = np.array(entry["values"], dtype=np.float64)
        self.seed = self.setting.seed + self.samples.seed
        warn_of_shared(self.setting)
        self.steps = len(self.setting.sampler.timesteps(self.model))

    def draw(self, first: int = 0) -> Drawn:
        """The samples of the network as it is now, which is full precision before step `first`."""
        wanted, recorded = self.samples, [] if self.played is None else None
        tape = cast(DiffusionModel, Tape(self.model, self.steps, self.played or [], first, recorded))
        found = draw(
            tape,
            self.setting.sampler,
            self.setting.dataset,
            count=wanted.num_samples,
            batch_size=wanted.batch_size,
            seed=self.seed,
            first=SEARCH,
        )
        if recorded is not None:
            self.played = recorded if len(recorded) == self.steps * len(found.chunks) else []
        return found

    @cached_property
    def full_precision(self) -> Drawn:
        """The samples of full precision, drawn once."""
        return self.draw()

    def losses(
        self, metric: PairedMetric, what: str, layers: Callable[[], Mapping[str, nn.Module]], first: int = 0
    ) -> NDArray[np.float64]:
        """What each sample loses by some layers, float64 [n], in the metric's unit; 0 is as good as full precision.

        Args:
            metric: compares the samples.
            what: names the layers, for the journal.
            layers: makes them; they must be full precision before step `first`.
            first: see `draw`.

        Raises:
            UserError: samples diverged.
        """
        key = what, repr(metric)
        if key not in self.known:
            reference, start = self.full_precision, perf_counter()
            with replaced(self.model.denoiser, layers()):
                samples = self.draw(first)
            if not samples.latents().isfinite().all():
                raise UserError(f"search: the samples diverge with {what} alone; leave such bits out of search.widths")
            sign = -1.0 if metric.higher_is_better else 1.0
            found = sign * (metric.each(samples, reference).double() - metric.each(reference, reference).double())
            self.known[key] = found.cpu().numpy()
            entry = {"what": what, "metric": key[1], "values": self.known[key].tolist()}
            self.journal.append(entry | {"seconds": round(perf_counter() - start, 3)})
        return self.known[key]


@dataclass(frozen=True)
class Measurement:
    """Every sensitivity that a search asks for.

    Args:
        groups: sites and metrics by name.
        space: the genes and their bit-widths.
        ranges: of the sampler.
        variants: the layers of each bit-width.
        meter: measures them.
    """

    groups: Mapping[str, MetricGroup]
    space: BitSpace
    ranges: Ranges
    variants: BitVariants
    meter: Meter

    def alone(self, gene: Gene, bits: int, number: int) -> dict[str, nn.Module]:
        """A gene's layers by site: quantized in range `number`, 0 the noisiest, and in full precision in the others."""
        model, quantized = self.variants.model, self.variants.at(bits).layers
        now, last = Now(model.clock, self.ranges.groups), len(self.ranges.parts) - 1
        order = [int(group == last - number) for group in range(last + 1)]
        return {
            s.name: TimedLinear([model.denoiser.get_submodule(s.name), quantized[s.name]], order, now)
            for s in gene.sites
        }

    def cells(self, parts: Mapping[str, Sequence[int]]) -> Cells:
        """The losses of every gene, range and width, measured or read back.

        Args:
            parts: the numbers of each group's genes; every gene is in one.

        Raises:
            UserError: samples diverged.
        """
        space, starts = self.space, [sum(self.space.steps[:n]) for n in range(len(self.space.steps))]
        found: Cells = [[{} for _ in space.steps] for _ in space.genes]
        group = by_gene(parts)
        total = len(space.steps) * sum(len(gene.sizes) for gene in space.genes)
        with progress(total=total, desc="sensitivities") as bar:
            for number, gene in enumerate(space.genes):
                metric = self.groups[group[number]].metric
                for part, first in enumerate(starts):
                    for bits in gene.sizes:
                        what = f"{gene.name} at {bits} bits in range {part + 1} of {len(starts)}"
                        make = lambda g=gene, b=bits, p=part: self.alone(g, b, p)  # noqa: E731
                        found[number][part][bits] = self.meter.losses(metric, what, make, first)
                        bar.update()
                self.meter.setting.tracker.log({"measured": bar.n}, number, "sensitivities")
        return found


def whole(entry: Entry) -> bool:
    """Whether a line of the journal has all it must have."""
    return bool(entry["values"]) and isinstance(entry["what"], str) and isinstance(entry["metric"], str)
