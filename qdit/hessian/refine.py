"""The fit step of `range=hessian`: search the grids of weights, static inputs and attention operands, before rounding.

All inputs are those of the full-precision network, in the basis of the recipe's transform, as in TQ-DiT (arXiv
2502.04056, algorithm 1). So errors do not propagate, and layers do not depend on each other, except for those that
consume one input (its *readers*: queries, keys and values), which share its grid. At most `HELD_VALUES` values of
inputs are held at a time, or those of one layer or one attention.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from qdit.calibration.blocks import Segment, Walk, segments
from qdit.calibration.observers import site_input, watching
from qdit.calibration.rows import ChosenRows
from qdit.fit import Fit
from qdit.hessian.blockwise import BlockSearch, block_sites
from qdit.hessian.grids import numbers_of, searched
from qdit.hessian.importance import Importance
from qdit.hessian.linears import Alternation, Found, Reading
from qdit.hessian.operands import OperandSearch, chosen_points, finite, operands_of, searched_operands
from qdit.hessian.rule import Hessian, rules
from qdit.hessian.scores import Layer
from qdit.hessian.searched import SearchedGrids
from qdit.hessian.target import Unweighted
from qdit.model.base import Attention, Site
from qdit.quant.grid import RowGrid
from qdit.seeding import generator
from qdit.storage.progress import progress

log = logging.getLogger("qdit")
BLOCK_POINTS = 32
"""Calibration points that an output of a block is compared on, at least, however many tokens each has; qdit's own, so
that all timesteps have a say."""
HELD_VALUES = 2**26  # of layers' inputs that are collected in one pass: 256 MiB


def refine(fit: Fit) -> dict[str, RowGrid]:
    """The grids of the weights that are searched, by site; the numbers of static quantizers are set in place.

    Raises:
        UserError: no calibration data, inputs that are not finite, or a damaged file of a finished segment.
    """
    searches = [rule for rule in rules(fit.recipe) if rule is not None]
    return Refinement(fit, searches[0]).run() if searches else {}


@dataclass
class Refinement:
    """The search of a fit; `rule` holds the settings that the rules of weights, inputs and operands share."""

    fit: Fit
    rule: Hessian

    @property
    def grids(self) -> SearchedGrids:
        """What is searched."""
        return SearchedGrids(self.fit)

    def run(self) -> dict[str, RowGrid]:
        """See `refine`."""
        parts = segments(self.fit.model.sites(), self.fit.policy)
        found = [self.grids.load(part) for part in parts]
        last = max((n for n, own in enumerate(found) if own is None), default=-1)
        walk = Walk(self.fit.model, self.fit.data, parts, self.fit.scratch()) if last >= 0 else None
        for n, part in enumerate(progress(parts[: last + 1], desc="ranges", unit="block")):
            assert walk is not None
            if found[n] is None:
                own = found[n] = self.search_all(walk, part)
                self.grids.save(part, own)
            if n < last:
                walk.advance(part, {})
        return self.grids.apply({key: value for own in found if own for key, value in own.items()})

    def search_all(self, walk: Walk, part: Segment) -> Found:
        """Search the segment that `walk` has come to."""
        found: Found = {}
        readings = [readers for readers in self.fit.by_input(part.sites) if self.grids.shapes(readers)]
        if self.rule.unit == "block" and part.block is not None:
            for readers in readings:
                found |= self.search_block(walk, part, readers)
            readings = []
        for some in self.batches(readings):
            inputs = self.inputs(walk, part, [readers[0] for readers in some])
            for readers in some:
                found |= self.search(readers, inputs.pop(readers[0].name))
        for attention in self.grids.attentions(part):
            found |= self.search_operands(walk, part, attention)
        return found

    def search_block(self, walk: Walk, part: Segment, readers: Sequence[Site]) -> Found:
        """Search the grids of one input and of the weights of its readers by the output of their block."""
        assert part.block is not None
        importance = self.importance[part.block]
        if importance.vanishes:
            return self.kept(part.block, readers)
        tokens = sum(each.rows.numel() for each in importance.parts) // len(self.fit.data.t)
        count = max(BLOCK_POINTS, self.fit.time.count, self.rule.tokens // tokens)
        points = chosen_points(self.fit.data.t, self.fit.time, count, self.rule.seed)
        weighing = None if isinstance(self.rule.target, Unweighted) else importance
        return BlockSearch(self.fit, walk, part, readers, self.grids.rounder(readers[0]), weighing, points).run()

    def kept(self, name: str, readers: Sequence[Site]) -> Found:
        """The ranges as they are, of readers behind whose output nothing reaches the prediction."""
        log.warning("range hessian: nothing reaches the prediction from %s, which keeps its range", name)
        kept = {key: torch.ones(shape) for key, shape in self.grids.shapes(readers).items()}
        if (key := f"{readers[0].name}.input") in kept and (module := searched(self.grids.rounder(readers[0]))):
            kept[key] = numbers_of(module)
        return kept

    def batches(self, readings: Sequence[list[Site]]) -> list[list[list[Site]]]:
        """Batches of inputs (with their readers) that are collected in one pass."""
        made: list[list[list[Site]]] = []
        room = 0
        for readers in readings:
            values = len(self.chosen(readers[0])) * readers[0].in_features
            if values > room:
                made.append([])
                room = HELD_VALUES
            made[-1].append(readers)
            room -= values
        return made

    def search_operands(self, walk: Walk, part: Segment, attention: Attention) -> Found:
        """The numbers of an attention's operands."""
        own = rules(self.fit.recipe)[2]
        assert own is not None
        importance = self.importance[attention.name]
        if importance.vanishes:
            log.warning("range hessian: nothing reaches the prediction from %s, which keeps its ranges", attention.name)
            quantizers = {site: searched(self.fit.attention[site]) for site in searched_operands(self.fit, attention)}
            return {f"{site}.operand": numbers_of(q) for site, q in quantizers.items() if q is not None}
        count = max(self.fit.time.count, self.rule.tokens // attention.tokens)  # at least one of each group
        times = self.fit.data.t.repeat_interleave(attention.copies)  # of each frame, or place, of a video
        items = chosen_points(times, self.fit.time, count, self.rule.seed)
        values = operands_of(walk, part, attention, items)
        found = OperandSearch(self.fit, own, attention, importance, items, times[items]).run(values)
        return {f"{site}.operand": numbers for site, numbers in found.items()}

    def search(self, readers: Sequence[Site], inputs: Tensor) -> Found:
        """Search the grids of one input and of the weights of its readers."""
        chosen = self.chosen(readers[0])
        layers = self.layers(readers, chosen)
        if layers is None:
            return self.kept(readers[0].name, readers)
        points = chosen // (self.importance[readers[0].name].rows.numel() // len(self.fit.data.t))
        reading = Reading(readers, layers, inputs, self.fit.data.t[points].to(inputs.device))
        return Alternation(self.fit, reading, self.grids.rounder(readers[0]), self.rule.rounds).run()

    @cached_property
    def importance(self) -> dict[str, Importance]:
        """How sensitive the prediction is to errors in the outputs of sites, or blocks, and attentions, by name."""
        weight, inputs, operands = rules(self.fit.recipe)
        sites = self.fit.sites if weight is not None or inputs is not None else []
        if self.rule.unit == "block":
            blocks = block_sites(self.fit.model)
            inner = dict.fromkeys(site.path for site in sites if site.path is not None)
            sites = [site for site in sites if site.path is None] + [blocks[path] for path in inner]
        attentions = self.fit.model.attentions() if operands is not None else []
        chosen = [a for a in attentions if searched_operands(self.fit, a)]
        return self.rule.target.importances(self.fit.model, self.fit.data, sites, self.rule.seed, chosen)

    def chosen(self, site: Site) -> Tensor:
        """Indices of the rows of a site's input that are used, in random order."""
        total, attended = self.importance[site.name].rows.numel(), self.fit.model.attended(site.name, self.fit.data.y)
        among = None if attended is None else attended.flatten().nonzero().flatten()
        random = generator(self.rule.seed, "hessian rows", 0)
        order = torch.randperm(total if among is None else len(among), generator=random)[: self.rule.tokens]
        return order if among is None else among[order]

    def inputs(self, walk: Walk, part: Segment, sites: Sequence[Site]) -> dict[str, Tensor]:
        """The chosen rows [n, channels] of what sites round, in full precision, float32, by site.

        Raises:
            UserError: they are not finite.
        """
        seen = {site.name: ChosenRows(self.chosen(site)) for site in sites}

        def see(site: Site, layer: nn.Module, x: Tensor, __: Tensor) -> None:
            rows, rewriting = site_input(layer, x), self.fit.rewrite.inputs.get(site.name)
            seen[site.name].add((rewriting(rows) if rewriting is not None else rows).reshape(-1, rows.shape[-1]))

        with watching(self.fit.model, list(sites), see):
            walk.observe(part, {})
        return {name: finite(rows.value(), f"an input of {name}") for name, rows in seen.items()}

    def layers(self, readers: Sequence[Site], chosen: Tensor) -> list[Layer] | None:
        """The layers under search, with importances relative to their mean; None if these are all 0."""
        rows = [self.importance[site.name].rows.flatten()[chosen].double() for site in readers]
        mean = torch.stack(rows).mean()
        if mean == 0:
            return None
        layers = []
        for site, own in zip(readers, rows, strict=True):
            weight = self.fit.weight_of(site).float()
            channels = self.importance[site.name].channels
            channels = channels / channels.mean().clamp(min=torch.finfo(channels.dtype).tiny)
            layers.append(Layer(weight, (own / mean).to(weight), channels.to(weight)))
        return layers
