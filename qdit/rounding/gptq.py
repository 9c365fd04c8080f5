"""GPTQ (arXiv 2210.17323) on diffusion transformers, as Q-DiT (arXiv 2406.17343) uses it for its weights.

The Hessian of a layer's inputs, H = (2/n) Σ x xᵀ, is accumulated block by block (`qdit.calibration.blocks`); the column
loop is `qdit.rounding.gptq_columns`. Layers that consume one input (its *readers*, such as q, k and v) share its
Hessian and its Cholesky factor. The calibration data holds points of both halves of guidance, with their class and with
the null class; Q-DiT's release sees only the conditional half (`calibration.null_share=0`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor, nn

from qdit.calibration.blocks import Segment, Walk
from qdit.checked import Checked
from qdit.fit import Fit
from qdit.model.base import Site
from qdit.nn.linear import Observed, QuantLinear
from qdit.quant.decibels import decibels
from qdit.quant.grid import Rounded
from qdit.rounding.base import Inputs
from qdit.rounding.gptq_columns import InputHessian, curvature, round_columns
from qdit.rounding.resume import round_segments

Order = Literal["together", "sequential"]


@dataclass(frozen=True, kw_only=True)
class GPTQ(Checked):
    """Round columns one by one; the later columns compensate for the rounding error of each.

    Args:
        damping: share of the Hessian's mean diagonal that is added to the diagonal (GPTQ's `percdamp`).
        block_size: columns in a lazy block, whose updates of later columns are applied together; it matters for speed,
            not for the result.
        order: inside a transformer block, `together` collects all Hessians in one pass, before any of its weights is
            rounded (as Q-DiT's release); `sequential` follows the computation ("true sequential"): attention input,
            attention output, ffn up, ffn down, each with the rounded ones before it in place.
        act_order: sort input channels by falling diag H. Group grids are then those of the original weight ("static
            groups"), because sorted groups are no longer contiguous when they are reached.
        inputs: `quantized` inputs are those of the network as quantized so far: earlier blocks' weights and all inputs
            rounded, as released; `full_precision` ones are the original network's.

    Raises:
        UserError: a value is out of range.
    """

    damping: Annotated[float, Ge(0), "0.01 is usual"] = 0.01
    block_size: Annotated[int, Ge(1), "128 is usual"] = 128
    order: Order = "together"
    act_order: bool = False
    inputs: Inputs = "quantized"
    needs_calibration = True

    def weights(self, fit: Fit) -> dict[str, Rounded]:
        """The rounded weight [out, in] of every site whose weight is quantized; finished blocks come from `fit.folder`.

        Raises:
            UserError: no calibration data, a Hessian that cannot be factored, or a damaged file of a finished block.
        """
        return round_segments(
            fit,
            lambda walk, segment: self.round_segment(fit, walk, segment),
            lambda segment, weights: self.layers(fit, segment, weights, {}),
        )

    def round_segment(self, fit: Fit, walk: Walk, segment: Segment) -> dict[str, Rounded]:
        """The rounded weights of the segment that `walk` has come to."""
        weights: dict[str, Rounded] = {}
        for stage in [segment.sites] if self.order == "together" else segment.stages():
            groups = fit.by_input([site for site in stage if fit.rounds(site)])
            hessians = {group[0].name: InputHessian() for group in groups}
            if groups:
                seeing = {name: partial(_add, hessian, walk, name) for name, hessian in hessians.items()}
                walk.observe(segment, self.layers(fit, segment, weights, seeing))
            for group in groups:
                hessian = hessians.pop(group[0].name)
                found = self.round_readers(fit, group, hessian)
                for site in group:
                    left = partial(_left, fit.weight_of(site), found[site.name], hessian)
                    fit.tracker.log(left, fit.sites.index(site), "rounding")
                weights |= found
        return weights

    def round_readers(self, fit: Fit, readers: list[Site], hessian: InputHessian) -> dict[str, Rounded]:
        """The rounded weights of the sites that read (consume) the one input whose Hessian is given."""
        curve = curvature(hessian.value(), self.damping, self.act_order, readers[0].name)
        rounded = {}
        for site in readers:
            weight, spec = fit.weight_of(site), fit.weight_spec(site)
            grid = fit.searched.get(site.name, fit.recipe.weight.fit)
            rounded[site.name] = round_columns(weight, curve, spec, grid, self.block_size)
        return rounded

    def layers(
        self, fit: Fit, segment: Segment, weights: Mapping[str, Rounded], seeing: Mapping[str, Callable[[Tensor], None]]
    ) -> dict[str, nn.Module]:
        """The segment's layers, with the weights that are rounded already; what is `seeing` some is shown inputs."""
        made: dict[str, nn.Module] = {}
        full = self.inputs == "full_precision"
        for site in segment.sites:
            quantizer = (fit.rewrite.inputs if full else fit.quantizers).get(site.name)
            if site.name in seeing:
                quantizer = Observed(quantizer, seeing[site.name])
            made[site.name] = QuantLinear(fit.layer(site), None if full else weights.get(site.name), quantizer).eval()
        if segment.block is not None and not full:
            made |= fit.processors(segment.block)
        return made


def _left(weight: Tensor, rounded: Rounded, hessian: InputHessian) -> dict[str, float]:
    """The error of a layer's output on the calibration data relative to the output, and that of its weight, in dB."""
    full, error, inputs = weight.float(), (rounded.weight - weight).float(), hessian.value()
    powers = [((each @ inputs) * each).sum() for each in (full, error)]
    energies = [each.square().sum() for each in (full, error)]
    return {"output_sqnr": decibels(*powers).item(), "weight_sqnr": decibels(*energies).item()}


def _add(hessian: InputHessian, walk: Walk, site: str, rows: Tensor) -> None:
    """Add the rows of a site's input that anything depends on."""
    hessian.add(walk.attended_rows(site, rows))
