"""Mixed precision (ViDiT-Q, arXiv 2406.02540, and MixDQ, arXiv 2405.17873): bits for each site and range of timesteps.

1. The sampling steps are split into ranges, and the sites into groups, each with the metric that its errors harm.
2. The sensitivity of (site, bits, range) is the metric's loss when that site alone is quantized in that range alone,
   on paired noise, with its standard error. Every sample counts equally, and values that differ by less than two
   standard errors are ties (`qdit.search.significance`); both are our additions.
3. The budget is split between groups, and allocated within each.
4. A site whose bits change over time keeps a weight for each of its bit-widths; the clock, which holds the current
   timestep, picks one.

Sensitivities are kept in the cache of the recipe and do not depend on budget, allocator or split, so that a further
budget needs no sampling. Losses of single sites are added up, as in both papers. Left out: a choice of inputs' bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import MinLen

from qdit.checked import Bits, Checked, Count
from qdit.eval.paired import LatentMSE
from qdit.model.base import DiffusionModel, Site
from qdit.quant.spec import divisors
from qdit.recipes import Recipe
from qdit.search import metric_groups
from qdit.search.allocate import Allocator
from qdit.search.bit_budget import BitBudget, Losses, Rest
from qdit.search.bit_search import BitBench, BitSearch
from qdit.search.bit_space import BitSpace, Plan
from qdit.search.budget import relaxed
from qdit.search.metric_groups import MetricGroup, by_gene, partition
from qdit.search.sensitivity import Cells, Measurement, Meter, Paired, whole
from qdit.search.significance import evened, standard_error, tied
from qdit.search.split import Share, Split
from qdit.storage.digest import digest
from qdit.storage.journal import Journal
from qdit.storage.run_folder import RunDir
from qdit.storage.shelf import Shelf

FORMAT = 1
FOLDER = "sensitivity"


@dataclass(frozen=True, kw_only=True)
class MixedPrecision(BitSearch, Checked):
    """Chooses the bits of weights.

    Args:
        widths: bits among which a site chooses in each range; 16 is full precision.
        ranges: of the sampling steps, of equal length.
        groups: sites and metrics by name.
        samples: behind each sensitivity.
        budget: what the plan may cost.
        allocator: chooses within a group.
        split: of the budget between groups.

    Raises:
        UserError: no bit-widths or impossible ones, or no range.
    """

    widths: Annotated[list[Bits], MinLen(1)]
    groups: dict[str, MetricGroup]
    samples: Paired
    budget: BitBudget
    allocator: Allocator
    split: Split
    ranges: Count = 4

    def space(self, recipe: Recipe, sites: Sequence[Site], steps: Sequence[int] | None = None) -> BitSpace:
        """See `BitSearch`."""
        space = BitSpace.of(recipe, sites, self.widths, steps or (1,) * self.ranges)
        return space.offering(metric_groups.widths(self.groups, space.genes))

    def misfits(self, space: BitSpace) -> list[str]:
        """See `BitSearch`."""
        found = metric_groups.problems(self.groups, space.genes)
        found += [
            f"search.groups.{name}.widths={group.widths}; some of search.widths={self.widths} are needed"
            for name, group in self.groups.items()
            if group.widths is not None and (not group.widths or set(group.widths) - set(self.widths))
        ]
        if found:
            return found
        layer = space.layers[min(space.layers)]
        sizes = {spec.group_size for spec in (layer.weight, layer.activation) if spec is not None and spec.group_size}
        bad = {(g, gene.sites[0].in_features): gene.name for gene in space.genes for g in sizes}
        return [
            f"group_size={size} does not divide {name} ({channels} inputs); {divisors(channels)} do"
            for (size, channels), name in bad.items()
            if channels % size
        ]

    def summary(self, recipe: Recipe, sites: Sequence[Site]) -> str:
        """See `Search`."""
        space = self.space(recipe, sites)
        rest = Rest.least(sites, recipe)
        parts = partition(self.groups, space.genes)
        count = self.ranges * sum(len(gene.sizes) for gene in space.genes)
        return (
            f"the bits of {len(space.genes)} inputs' weights in {self.ranges} ranges of timesteps are chosen among "
            f"{', '.join(map(str, space.layers))}, by {count} sensitivities of {self.samples.num_samples} samples in "
            f"the group{'s' * (len(parts) > 1)} {', '.join(parts)}, with a budget of "
            f"{self.budget.text(space, self.budget.limit(space, rest), rest)}; shown is the cheapest choice"
        )

    def unusable(self, model: DiffusionModel, space: BitSpace) -> list[str]:
        """Metrics that lack their weights, or are for another modality."""
        found = []
        for name in partition(self.groups, space.genes):
            metric = self.groups[name].metric
            found += metric.preflight(image_size=model.image_size)
            if model.modality not in metric.modalities:
                found.append(f"search.groups.{name}: its metric is for {metric.modalities}, not for {model.modality}s")
        return found

    def find(self, bench: BitBench) -> tuple[Plan, list[dict]]:
        """See `BitSearch`."""
        space, ranges, variants = bench.space, bench.ranges, bench.variants
        parts = partition(self.groups, space.genes)
        for bits in self.widths:
            variants.at(bits)  # here, where the network is the original one, of which calibration data are
        with variants.rewrite.installed(variants.model), self.meter(bench) as meter:
            cells = Measurement(self.groups, space, ranges, variants, meter).cells(parts)
            losses = [[{} for _ in ranges.parts] for _ in space.genes]
            for numbers in parts.values():
                for number, loss in zip(numbers, tied(evened([cells[n] for n in numbers])), strict=True):
                    losses[number] = [dict(each) for each in loss]
            plan = self.choose(Case(bench, parts, losses, meter))
        return plan, recorded(space, parts, cells, plan)

    @contextmanager
    def meter(self, bench: BitBench) -> Iterator[Meter]:
        """The meter, which locks the cache of this recipe; another process that measures the same waits."""
        recipe, setting = bench.variants.recipe, bench.setting
        about = {"recipe": [repr(recipe.layer), repr(recipe.rounding), repr(recipe.transform)]}
        about |= {"samples": repr(self.samples), "seed": setting.seed, "sampler": setting.sampler.protocol()}
        about |= {"repair": repr(recipe.repair)} if recipe.repair is not None else {}  # of the layers measured
        about |= {"ranges": [[part.first, part.last, part.steps] for part in bench.ranges.parts]}
        place = bench.folder / FOLDER if bench.folder is not None else None
        with RunDir(Shelf.of(place).folder).lock(wait=True) if place is not None else nullcontext():
            header = {"ledger": FORMAT, "sensitivity": digest(about), **about}
            yield Meter(bench.variants.model, setting, self.samples, Journal(place, digest(about), header, whole))

    def choose(self, case: "Case") -> Plan:
        """The plan of the best split.

        Raises:
            UserError: no plan is within the budget, or samples diverged.
        """
        space, shares = case.bench.space, case.shares(self.budget)
        limit = self.budget.limit(space, case.bench.rest)
        plans = []
        for limits in self.split.limits(shares, limit, case.error):
            bits = [[0] * len(space.steps) for _ in space.genes]
            for share, most in zip(shares, limits, strict=True):
                menu = self.budget.menu(space, case.losses, share.genes, most)
                menu.fill(bits, self.allocator.choose(menu))
            plans.append(tuple(map(tuple, bits)))
        plans = list(dict.fromkeys(plans))
        best = plans[0] if len(plans) == 1 else min(plans, key=case.plan_error)
        spent = self.budget.spent(space, best)
        if spent > relaxed(limit):
            raise RuntimeError(f"the plan costs {spent}, and the limit is {limit}")
        return best


@dataclass(frozen=True)
class Case:
    """What a split and an allocation work on.

    Args:
        bench: the space, and the layers of each bit-width.
        parts: the numbers of each group's genes.
        losses: that allocators see (`qdit.search.significance`).
        meter: measures whole groups and plans.
    """

    bench: BitBench
    parts: Mapping[str, Sequence[int]]
    losses: Losses
    meter: Meter

    def shares(self, budget: BitBudget) -> list[Share]:
        """The groups with their costs."""
        space, found = self.bench.space, []
        for name, numbers in self.parts.items():
            patterns = {bits: (bits,) * len(space.steps) for bits in space.genes[numbers[0]].sizes}
            costs = {b: sum(budget.cost(space, space.genes[n], p) for n in numbers) for b, p in patterns.items()}
            found.append(Share(name, numbers, costs))
        return found

    def error(self, share: Share, bits: int) -> float:
        """Mean squared error of the final latent with a whole group at the same bits all the time."""
        layers = self.bench.variants.at(bits).layers
        names = [site.name for number in share.genes for site in self.bench.space.genes[number].sites]
        what = f"group {digest(names)} at {bits} bits"
        return float(self.meter.losses(LatentMSE(), what, lambda: {name: layers[name] for name in names}).mean())

    def plan_error(self, plan: Plan) -> float:
        """Mean squared error of the final latent under a plan."""
        space, ranges, variants = self.bench.space, self.bench.ranges, self.bench.variants
        genes = [gene.name for gene in space.genes]
        make = lambda: variants.assembled(space, plan, ranges).layers  # noqa: E731
        return float(self.meter.losses(LatentMSE(), f"plan {digest([genes, plan])}", make).mean())


def recorded(space: BitSpace, parts: Mapping[str, Sequence[int]], cells: Cells, plan: Plan) -> list[dict]:
    """For each gene its bits, and the sensitivities by bits and range."""
    group, found = by_gene(parts), []
    for number, (gene, pattern) in enumerate(zip(space.genes, plan, strict=True)):
        measured: dict[str, Any] = {"loss": {}, "stderr": {}}
        for width in gene.sizes:
            values = np.stack([cell[width] for cell in cells[number]])
            measured["loss"][str(width)] = values.mean(-1).tolist()
            measured["stderr"][str(width)] = standard_error(values).tolist()
        found.append(gene.place | {"group": group[number], "bits": list(pattern)} | measured)
    return found
