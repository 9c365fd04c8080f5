"""Bias correction: the mean of a quantized layer's output is made that of full precision.

Sources: Nagel et al., data-free quantization (arXiv 1906.04721); Liu et al., post-training quantization for vision
transformers (arXiv 2106.14156), which takes the mean over calibration data, as here:

    b ← b - E[Ŵ x̂ + b - z],    z the layer's output in full precision

with the expectation over calibration points and tokens, for each output channel. The squared error of the output falls
by exactly the square of its mean. A layer without a bias gets one, which the ledger does not count. With
`inputs=full_precision` a layer sees the inputs of the original network (its own error is repaired); with
`inputs=quantized` those of the network as quantized and repaired so far, layer after layer, so that means which drift
with depth are repaired, too, as in Liu et al.'s search.

Left out: their repetition after each round of a search of ranges; a bias for each group of timesteps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdit.calibration.blocks import Segment, Walk, segments
from qdit.calibration.data import Pass
from qdit.calibration.observers import attended_rows, watching
from qdit.checked import Checked
from qdit.fit import Fit
from qdit.model.base import Site
from qdit.nn.linear import QuantLinear
from qdit.nn.patches import patch_size
from qdit.rounding.base import Inputs


class Mean:
    """The mean of rows [..., channels] that come part by part, float64."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Take in rows."""
        flat = rows.reshape(-1, rows.shape[-1])
        self.total, self.count = self.total + flat.double().sum(0), self.count + len(flat)

    def value(self) -> Tensor:
        """The mean, [channels]."""
        assert isinstance(self.total, Tensor), "no rows were seen"
        return self.total / self.count


@dataclass(frozen=True, kw_only=True)
class BiasRepair(Checked):
    """Take the mean error of each layer's output out of its bias.

    Args:
        inputs: whose inputs layers see: the original network's (`full_precision`), or the quantized one's
            (`quantized`).
    """

    inputs: Inputs = "full_precision"
    needs_calibration = True

    @torch.no_grad()
    def repair(self, fit: Fit, layers: Mapping[str, QuantLinear]) -> None:
        """See `Repair`.

        Raises:
            UserError: no calibration data, or, for `inputs=quantized`, a network that cannot be walked.
        """
        if self.inputs == "full_precision":
            repair_alone(fit, layers)
        else:
            repair_in_order(fit, layers)


def repair_alone(fit: Fit, layers: Mapping[str, QuantLinear]) -> None:
    """Repair each layer for the inputs of the original network, in one pass of it."""
    errors = {name: Mean() for name in layers}
    calls = Pass(fit.model, fit.data)  # what is collected now must not be watched

    def see(site: Site, layer: nn.Module, x: Tensor, z: Tensor) -> None:
        own = layers[site.name]
        error = rows_of(own, own(x)).double() - rows_of(layer, z).double()
        errors[site.name].add(attended_rows(fit.model, site.name, calls.y, error))

    with watching(fit.model, [site for site in fit.sites if site.name in layers], see):
        calls.run()
    for name, error in errors.items():
        move(layers[name], error.value())


def repair_in_order(fit: Fit, layers: Mapping[str, QuantLinear]) -> None:
    """Repair the layers one behind the other, each for the inputs that the repaired ones before it give."""
    parts = segments(fit.model.sites(), fit.policy)
    full, own = (Walk(fit.model, fit.data, parts, fit.scratch()) for _ in range(2))
    for n, part in enumerate(parts):
        made: dict[str, nn.Module] = {site.name: layers[site.name] for site in part.sites}
        if part.block is not None:
            made |= fit.processors(part.block)
        target = means(full, part, part.sites, {})
        for stage in part.stages():
            for name, mean in means(own, part, stage, made).items():
                move(layers[name], mean - target[name])
        if n < len(parts) - 1:
            full.advance(part, {})
            own.advance(part, made)


def means(walk: Walk, part: Segment, sites: Sequence[Site], layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The mean output of sites over all points, by site, while the walk is at their segment, with `layers` in place."""
    found = {site.name: Mean() for site in sites}
    handles = []

    def watch(site: Site) -> None:
        module = layers.get(site.name) or walk.model.denoiser.get_submodule(site.name)

        def see(layer: nn.Module, _: object, output: Tensor) -> None:
            found[site.name].add(walk.attended_rows(site.name, rows_of(layer, output)))

        handles.append(module.register_forward_hook(see))

    try:
        for site in sites:
            watch(site)
        if sites:
            walk.observe(part, layers)
    finally:
        for handle in handles:
            handle.remove()
    return {name: mean.value() for name, mean in found.items()}


def rows_of(layer: nn.Module, output: Tensor) -> Tensor:
    """A layer's output as rows [..., channels]; a patch embedding's are [B, channels, *places]."""
    return output if patch_size(layer) is None else output.flatten(2).mT


def move(layer: QuantLinear, mean: Tensor) -> None:
    """Take the mean of an error [out] out of a layer's bias; one without gets one."""
    own = torch.zeros_like(mean) if layer.bias is None else layer.bias.double()
    layer.bias = (own - mean).to(layer.weight.dtype)
