"""Bits of attentions and feed-forwards by nuclear norms (Liu et al., NeurIPS 2021, arXiv 2106.14156).

All layers of a module, a block's attention or its feed-forward, have one bit-width. Of all choices within the budget
the one is taken that has the least

    Ω = Σ_modules ‖Y‖_* ‖Ŷ - Y‖²

where Y are the attention's probabilities, or the feed-forward's output, of a module that alone is quantized: a map of
high rank, which says more, may be changed less. No sampling is needed.

What differs from the paper: norm and error are relative, ‖Y‖_* / (√rank ‖Y‖) and ‖Ŷ - Y‖² / ‖Y‖², as the two kinds of
Y live on different scales, and attentions would get all the low bits; bits of weights are chosen, and inputs keep those
of the recipe; layers outside of both kinds of module keep the recipe's bits.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from jaxtyping import Float, Int
from torch import Tensor, nn

from qdit.calibration import CalibrationData
from qdit.calibration.blocks import Segment, Walk, segments
from qdit.calibration.observers import watching_operands
from qdit.checked import Bits, Checked, Count
from qdit.hessian.operands import chosen_points, inside
from qdit.model.base import Site
from qdit.model.roles import meant
from qdit.quant.time_groups import split
from qdit.recipes import Recipe
from qdit.search.allocate import Allocator, Menu
from qdit.search.bit_budget import BitBudget, Rest
from qdit.search.bit_search import BitBench, BitSearch
from qdit.search.bit_space import BitSpace, Plan
from qdit.search.budget import Costs
from qdit.search.variants import BitVariants

log = logging.getLogger("qdit")
MOST_TOKENS = 1024
"""Of an attention: .2 s a map on a core, and 20 minutes for DiT-XL/2 at 512 px; the time grows as the cube."""
KINDS: Mapping[str, list[str]] = {"attention": ["qkv", "attn_out"], "feed_forward": ["ffn_up", "ffn_down"]}
"""The roles of a module's layers."""


def nuclear(matrices: Float[Tensor, "*many rows columns"]) -> Float[Tensor, "*many"]:
    """The nuclear norms: sums of singular values.

    >>> nuclear(torch.stack([torch.eye(4), torch.full((4, 4), 0.25)]))
    tensor([4., 1.])
    """
    return torch.linalg.svdvals(matrices).sum(-1)


def relative_norm(matrices: Float[Tensor, "*many rows columns"]) -> float:
    """The mean of ‖Y‖_* / (√rank ‖Y‖), from 1 / √rank to 1; zeros count as 0."""
    flat = matrices.float().flatten(0, -3)
    sizes = flat.square().sum((-1, -2)).sqrt() * min(flat.shape[-2:]) ** 0.5
    return float((nuclear(flat) / sizes.clamp(min=torch.finfo(torch.float32).tiny)).mean())


@dataclass(frozen=True)
class Module:
    """Genes that have one bit-width."""

    block: str
    kind: str
    genes: tuple[int, ...]
    """Their numbers in the space."""


def modules_of(space: BitSpace) -> list[Module]:
    """The attentions and feed-forwards of all blocks, in forward order."""
    found: dict[tuple[str, str], list[int]] = {}
    for number, gene in enumerate(space.genes):
        site = gene.sites[0]
        for kind, roles in KINDS.items():
            if site.path is not None and meant(site.role, roles):
                found.setdefault((site.path, kind), []).append(number)
    return [Module(block, kind, tuple(genes)) for (block, kind), genes in found.items()]


@dataclass(frozen=True, kw_only=True)
class Nuclear(BitSearch, Checked):
    """Chooses one bit-width for the weights of each attention and each feed-forward.

    Args:
        widths: bits among which a module chooses.
        budget: what the plan may cost.
        allocator: finds the choice.
        points: calibration points at which outputs are compared, from as many parts of the timesteps.

    Raises:
        UserError: no bit-widths or impossible ones, or no point.
    """

    widths: Annotated[list[Bits], MinLen(1)]
    budget: BitBudget
    allocator: Allocator
    points: Count = 16
    needs_calibration = True
    ranges = 1

    def space(self, recipe: Recipe, sites: Sequence[Site], steps: Sequence[int] | None = None) -> BitSpace:
        """See `BitSearch`."""
        space = BitSpace.of(recipe, sites, [*self.widths, recipe.weight_bits], steps or (1,))
        chosen = {number for module in modules_of(space) for number in module.genes}
        own = {n: self.widths if n in chosen else [recipe.weight_bits] for n in range(len(space.genes))}
        return space.offering(own)

    def misfits(self, space: BitSpace) -> list[str]:
        """See `BitSearch`."""
        if not modules_of(space):
            return [
                "search=nuclear chooses bits of attentions and feed-forwards, and none is in scope; use scope=blocks"
            ]
        tokens = max(site.tokens for gene in space.genes for site in gene.sites)
        if tokens > MOST_TOKENS:
            return [
                f"search=nuclear decomposes each head's map of tokens by tokens, for each point and bit-width: of "
                f"{tokens} tokens that takes hours to days; {MOST_TOKENS} are allowed; use search=ilp or another"
            ]
        return []

    def summary(self, recipe: Recipe, sites: Sequence[Site]) -> str:
        """See `Search`."""
        space, rest = self.space(recipe, sites), Rest.least(sites, recipe)
        return (
            f"the bits of {len(modules_of(space))} attentions and feed-forwards are chosen among "
            f"{', '.join(map(str, self.widths))}, by nuclear norms, with a budget of "
            f"{self.budget.text(space, self.budget.limit(space, rest), rest)}; shown is the cheapest choice"
        )

    def find(self, bench: BitBench) -> tuple[Plan, list[dict]]:
        """See `BitSearch`."""
        space, variants, modules = bench.space, bench.variants, modules_of(bench.space)
        data = variants.collect()  # here, where the network is the original one
        for bits in space.layers:
            variants.at(bits)
        with variants.rewrite.installed(variants.model):
            norms, errors = self.compare(space, modules, variants, data)
        losses = [{b: norm * e for b, e in own.items()} for norm, own in zip(norms, errors, strict=True)]
        plan = self.choose(space, modules, losses, bench.rest)
        return plan, self.recorded(space, modules, losses, plan)

    @torch.no_grad()
    def compare(
        self, space: BitSpace, modules: Sequence[Module], variants: BitVariants, data: CalibrationData
    ) -> tuple[list[float], list[dict[int, float]]]:
        """The relative norm of each module's Y, and its relative squared error by bits."""
        model, rows = variants.model, points_of(data, self.points)
        some = CalibrationData(data.x[rows], data.t[rows], data.y[rows], data.batch_size)
        parts = segments(model.sites(), {site.name for gene in space.genes for site in gene.sites})
        walk, norms, errors = Walk(model, some, parts), dict[Module, float](), dict[Module, dict[int, float]]()
        for part in parts[:-1]:
            for module in (m for m in modules if m.block == part.block):
                names = [site.name for number in module.genes for site in space.genes[number].sites]
                exact = outputs_of_module(walk, part, module.kind, {})
                norms[module] = sum(map(relative_norm, exact)) / len(exact)
                errors[module] = {}
                for bits in self.widths:
                    made = {name: variants.at(bits).layers[name] for name in names}
                    rounded = outputs_of_module(walk, part, module.kind, made)
                    pairs = zip(rounded, exact, strict=True)
                    lost = sum(float((one - y).square().sum(dtype=torch.float64)) for one, y in pairs)
                    errors[module][bits] = lost / sum(float(y.square().sum(dtype=torch.float64)) for y in exact)
            walk.advance(part, {})
        return [norms[module] for module in modules], [errors[module] for module in modules]

    def choose(
        self, space: BitSpace, modules: Sequence[Module], losses: Sequence[dict[int, float]], rest: Rest
    ) -> Plan:
        """The plan of least Ω.

        Raises:
            UserError: no plan is within the budget.
        """
        plan = [pattern[0] for pattern in space.cheapest]  # what no module holds has no choice
        held = {number for module in modules for number in module.genes}

        def cost(numbers: Sequence[int], bits: int | None = None) -> float:
            return sum(self.budget.cost(space, space.genes[n], (bits or plan[n],)) for n in numbers)

        left = self.budget.limit(space, rest) - cost([n for n in range(len(plan)) if n not in held])
        costs = [{bits: cost(module.genes, bits) for bits in sorted(self.widths)} for module in modules]
        menu = Menu([(n, None) for n in range(len(modules))], list(losses), Costs(costs, left))
        for module, bits in zip(modules, self.allocator.choose(menu), strict=True):
            for number in module.genes:
                plan[number] = bits
        return tuple((bits,) for bits in plan)

    def recorded(
        self, space: BitSpace, modules: Sequence[Module], losses: Sequence[dict[int, float]], plan: Plan
    ) -> list[dict]:
        """For each gene its bits, and the share of Ω that its module would have by bits."""
        of_gene = {n: (module.kind, own) for module, own in zip(modules, losses, strict=True) for n in module.genes}
        found = []
        for number, (gene, pattern) in enumerate(zip(space.genes, plan, strict=True)):
            kind, own = of_gene.get(number, ("others", {pattern[0]: 0.0}))
            loss = {str(bits): [value] for bits, value in own.items()}
            found.append(gene.place | {"group": kind, "bits": list(pattern), "loss": loss})
        return found


def points_of(data: CalibrationData, count: int) -> Int[Tensor, " count"]:
    """Indices of some points: one of each part of the timesteps, drawn among all conditions.

    Evenly spaced points would meet the null condition never, or always, where every other one has it.
    """
    times = sorted(set(data.t.tolist()))
    starts = sorted({len(times) * part // count for part in range(1, count)} - {0})
    return chosen_points(data.t, split(times, starts), count, 0)


def outputs_of_module(walk: Walk, part: Segment, kind: str, layers: Mapping[str, nn.Module]) -> list[Tensor]:
    """Y of a module [points, …, rows, columns] while a walk is at its block, for each attention, or last layer."""
    kept: dict[str, list[Tensor]] = {}

    def see(name: str, x: Tensor) -> None:
        kept.setdefault(name, []).append(x.float().cpu())

    def put_out(name: str, _layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        see(name, output)

    model = walk.model
    with ExitStack() as stack:
        if kind == "attention":
            own = inside(model.attentions(), part)
            maps = {attention.sites["probs"] for attention in own}
            stack.enter_context(watching_operands(model, own, lambda site, x: see(site, x) if site in maps else None))
        else:
            last = [s for s in model.sites() if s.path == part.block and meant(s.role, ["ffn_down"])]
            for site in last:
                layer = layers.get(site.name) or model.denoiser.get_submodule(site.name)
                stack.callback(layer.register_forward_hook(partial(put_out, site.name)).remove)
        walk.observe(part, layers)
    return [torch.cat(values) for values in kept.values()]
