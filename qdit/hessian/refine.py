"""The fit step of `range=hessian`: search the grids of weights and static inputs, layer by layer, before rounding.

Everything is seen in full precision, in the basis of the recipe's transform, as in TQ-DiT (arXiv 2502.04056, algorithm
1): errors do not propagate, and layers do not depend on each other, but for those that read one input (queries, keys
and values), which share its grid. Inputs of one layer are held at a time. A finished segment of the network is saved as
the factors that were found, and read back by the same fit.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qdit.calibration.statistics import site_input, watching
from qdit.errors import UserError
from qdit.hessian.alternation import Alternation, Factors, Reading
from qdit.hessian.inputs import multiply, numbers_of
from qdit.hessian.rule import Hessian, rules
from qdit.hessian.scores import Layer, scaled
from qdit.hessian.target import Importance, importances
from qdit.layers import Shared
from qdit.model.base import Site
from qdit.quant.affine import Affine
from qdit.quant.spec import as_rows
from qdit.rounding.blocks import Segment, Walk, segments
from qdit.sampler.noise import generator
from qdit.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from qdit.fit import Fit

log = logging.getLogger("qdit")


def refine(fit: "Fit") -> dict[str, Affine]:
    """The grids of the weights that are searched, by site; the steps of searched inputs are set in place.

    Raises:
        UserError: no calibration data, inputs that are not finite, or a damaged file of a finished segment.
    """
    searches = [rule for rule in rules(fit.recipe) if rule is not None]
    return Refinement(fit, searches[0]).run() if searches else {}


@dataclass
class Refinement:
    """The search of a fit; `rule` has what the rules of weights and inputs share."""

    fit: "Fit"
    rule: Hessian

    def run(self) -> dict[str, Affine]:
        """See `refine`."""
        parts = segments(self.fit.model.sites(), self.fit.policy)
        found = [self.load(part) for part in parts]
        last = max((n for n, factors in enumerate(found) if factors is None), default=-1)
        walk = Walk(self.fit.model, self.fit.data, parts) if last >= 0 else None
        for n, part in enumerate(tqdm(parts[: last + 1], desc="ranges", unit="block", disable=None)):
            assert walk is not None
            if (factors := found[n]) is None:
                factors = found[n] = self.search_all(walk, part)
                if self.fit.folder is not None:
                    save_tensors(self.path(self.fit.folder, part), factors)
            if n < last:
                walk.advance(part, {})
        return self.apply({key: value for factors in found if factors for key, value in factors.items()})

    def search_all(self, walk: Walk, part: Segment) -> Factors:
        """The factors of a segment that `walk` has come to."""
        found: Factors = {}
        for readers in self.fit.by_input(part.sites):
            if self.shapes(readers):
                found |= self.search(walk, part, readers)
        return found

    def shapes(self, readers: Sequence[Site]) -> dict[str, tuple[int, ...]]:
        """What is searched of the readers of an input, with the shapes of the factors."""
        weight, inputs = rules(self.fit.recipe)
        shapes: dict[str, tuple[int, ...]] = {}
        if weight is not None:
            for site in readers:
                if self.fit.rounds(site):
                    rows = as_rows(self.fit.weight_of(site), self.fit.weight_spec(site)).shape[0]
                    shapes[f"{site.name}.weight"] = (rows, 1)
        if inputs is not None and (module := self.rounder(readers[0])) is not None:
            shapes[f"{readers[0].name}.input"] = (len(numbers_of(module)),)
        return shapes

    def search(self, walk: Walk, part: Segment, readers: Sequence[Site]) -> Factors:
        """The factors for the readers of one input."""
        chosen = self.chosen(readers[0])
        inputs = self.inputs(walk, part, readers[0], chosen)
        layers = self.layers(readers, chosen)
        if layers is None:
            log.warning("range hessian: nothing reaches the prediction from %s, which keeps its range", readers[0].name)
            return {key: torch.ones(shape) for key, shape in self.shapes(readers).items()}
        points = chosen // self.importance[readers[0].name].rows.shape[1]
        reading = Reading(readers, layers, inputs, self.fit.data.t[points].to(inputs.device))
        return Alternation(self.fit, reading, self.rounder(readers[0]), self.rule.rounds).run()

    @cached_property
    def importance(self) -> dict[str, Importance]:
        """How much the prediction minds errors in the outputs of the sites."""
        return importances(self.fit.model, self.fit.data, self.fit.sites, self.rule.target, self.rule.seed)

    def chosen(self, site: Site) -> Tensor:
        """Numbers of the rows of a site's input that are looked at, in random order."""
        total = self.importance[site.name].rows.numel()
        return torch.randperm(total, generator=generator(self.rule.seed, "hessian rows", 0))[: self.rule.tokens]

    def inputs(self, walk: Walk, part: Segment, site: Site, chosen: Tensor) -> Tensor:
        """The chosen rows [n, channels] of what a site rounds, in full precision, float32."""
        ordered, place = chosen.sort()
        rewriting, seen, first = self.fit.rewrite.inputs.get(site.name), [], 0

        def see(_: Site, layer: nn.Module, x: Tensor, __: Tensor) -> None:
            nonlocal first
            rows = site_input(layer, x)
            rows = (rewriting(rows) if rewriting is not None else rows).reshape(-1, rows.shape[-1])
            here = ordered[(ordered >= first) & (ordered < first + len(rows))] - first
            seen.append(rows[here.to(rows.device)].float())
            first += len(rows)

        with watching(self.fit.model, [site], see):
            walk.observe(part, {})
        collected = torch.cat(seen)
        if not collected.isfinite().all():
            raise UserError(f"range hessian: the inputs of {site.name} are not finite; try dtype=float32")
        inputs = torch.empty_like(collected)
        inputs[place.to(inputs.device)] = collected
        return inputs

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

    def rounder(self, site: Site) -> nn.Module | None:
        """What rounds a site's input, without what a transform does to it before."""
        if self.fit.policy[site.name].activation is None:
            return None
        module = self.fit.quantizers[site.name]
        module = module.quantizer if isinstance(module, Shared) else module
        return module[-1] if isinstance(module, nn.Sequential) and site.name in self.fit.rewrite.inputs else module

    def load(self, part: Segment) -> Factors | None:
        """The factors of a segment that an earlier run saved, None if there are none; it may have nothing to search.

        Raises:
            UserError: the file is damaged or of another model.
        """
        expected = {
            key: shape for readers in self.fit.by_input(part.sites) for key, shape in self.shapes(readers).items()
        }
        if not expected:
            return {}
        path = self.path(self.fit.folder, part) if self.fit.folder is not None else None
        if path is None or not path.exists():
            return None
        found = load_tensors(path)
        if {key: tuple(tensor.shape) for key, tensor in found.items()} != expected:
            raise UserError(f"{path} holds ranges of another model than this {part.name}; delete it")
        return found

    @staticmethod
    def path(folder: Path, part: Segment) -> Path:
        """Where a segment's factors are saved."""
        return folder / "ranges" / f"{part.name}.safetensors"

    def apply(self, factors: Mapping[str, Tensor]) -> dict[str, Affine]:
        """The grids of weights with these factors; those of inputs get theirs."""
        grids: dict[str, Affine] = {}
        for site in self.fit.sites:
            if (own := factors.get(f"{site.name}.weight")) is not None:
                start = self.fit.grid(site)
                grids[site.name] = scaled(start, own.to(start.scale))
            if (own := factors.get(f"{site.name}.input")) is not None:
                multiply(self.rounder(site), own)
        return grids
