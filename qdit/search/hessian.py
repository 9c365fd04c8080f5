"""Allocation by curvature (HAWQ-V2, arXiv 1911.03852), one of the rivals in Q-DiT's comparison.

The error of a gene (the layers that share an input) at group size g is the sum over its sites of
mean trace(H) · |Q_g(W) - W|², with W rounded to nearest, and H the Hessian, with respect to W, of the squared distance
of the network's output to its full-precision output. That distance has no residual at full precision, so H = 2 JᵀJ
exactly (Gauss-Newton), with J the Jacobian of the output, and Hutchinson's estimator needs no second derivative:
trace(JᵀJ) = E |Jᵀv|² over random signs v. Left out, as in HAWQ: the quantization of inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qdit.checked import Checked, Count
from qdit.model.base import DiffusionModel, Site
from qdit.nn.patches import matrix
from qdit.recipes import Recipe
from qdit.rounding import Nearest
from qdit.search.base import Bench
from qdit.search.ilp import Errors, LeastError
from qdit.search.variants import Variants


@dataclass(frozen=True, kw_only=True)
class Hessian(LeastError, Checked):
    """Minimise the sum of trace-weighted weight errors.

    Args:
        probes: random sign vectors per batch of calibration data.
        seed: of the signs.

    Raises:
        UserError: no probes.
    """

    probes: Count = 4
    seed: int = 0

    def problems(self, recipe: Recipe, sites: Sequence[Site]) -> list[str]:
        """See `Search`."""
        layer = recipe.layer
        if layer.weight is None or layer.weight.granularity != "group":
            return [
                "search=hessian weighs the errors of weights in groups, and here weights have none; use weight=group"
            ]
        if any(recipe.particular(layer, site).bases > 1 for site in recipe.scope.select(list(sites))):
            return [
                "search=hessian weighs the errors of one weight a site, and this transform keeps several over time; "
                "use search=ilp or search=evolution"
            ]
        return super().problems(recipe, sites)

    def errors(self, bench: Bench) -> Errors:
        """Mean trace times squared error of the weight, summed over a gene's sites."""
        sites = [site for gene in bench.space.genes for site in gene.sites]
        nearest = Variants(bench.model, replace(bench.recipe, rounding=Nearest()), bench.collect)
        bench.collect()  # on the original network
        with nearest.rewrite.installed(bench.model):
            traces = self.traces(bench, sites)
            weights = {site.name: matrix(bench.model.denoiser.get_submodule(site.name)) for site in sites}

        def error(site: Site, size: int) -> float:
            weight = weights[site.name]
            change = nearest.of_size(size).layers[site.name].weight
            assert isinstance(change, Tensor)
            mean_trace = traces[site.name] / weight.numel()
            return mean_trace * float((change.double() - weight.double()).square().sum())

        return [{g: sum(error(s, g) for s in gene.sites) for g in gene.sizes} for gene in bench.space.genes]

    def traces(self, bench: Bench, sites: Sequence[Site]) -> dict[str, float]:
        """Trace of the Hessian of each site's weight, by its name, averaged over calibration points."""
        total = dict.fromkeys([site.name for site in sites], 0.0)
        generator = torch.Generator().manual_seed(self.seed)
        data = bench.collect()
        channels = bench.model.latent_shape[0]  # a learned variance is left out: sampling quality hardly depends on it
        with torch.enable_grad(), differentiable(bench.model, sites) as weights:
            for x, t, y in data.batches(bench.model):
                output = bench.model.denoise(x, t, y)[:, :channels].float()
                for probe in range(self.probes):
                    signs = (torch.randint(0, 2, output.shape, generator=generator) * 2 - 1).to(output)
                    keep = probe + 1 < self.probes
                    slopes = torch.autograd.grad(output, weights, signs, retain_graph=keep)
                    for name, slope in zip(total, slopes, strict=True):
                        total[name] += float(slope.double().square().sum())
        return {name: 2 * value / (self.probes * len(data.x)) for name, value in total.items()}


@contextmanager
def differentiable(model: DiffusionModel, sites: Sequence[Site]) -> Iterator[list[Tensor]]:
    """The weights of sites, with respect to which outputs can be differentiated until the block ends."""
    weights = [weight_of(model.denoiser.get_submodule(site.name)) for site in sites]
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield list(weights)
    finally:
        for weight, needed in zip(weights, before, strict=True):
            weight.requires_grad_(needed)


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight itself, a parameter or (rewritten by a transform) a buffer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
