"""Allocation by each site's own error, one of the rivals in Q-DiT's comparison (its table of allocation methods).

The error of a site at a group size is the relative error of its output, Σ |y_g - y|² / Σ |y|², when its weight and its
input are both quantized and its input is that of the full-precision network. Errors of the sites of a gene (the layers
that share an input) are summed. What exactly the paper's program minimized is not published; relative errors are our
choice, because the layers' outputs differ in size by orders of magnitude.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdit.calibration.observers import watching
from qdit.model.base import Site
from qdit.search.base import Bench
from qdit.search.programme import Errors, LeastError


@dataclass(frozen=True, kw_only=True)
class ILP(LeastError):
    """Minimise the sum of the sites' relative output errors."""

    @torch.no_grad()
    def errors(self, bench: Bench) -> Errors:
        """One pass of the calibration data, in which every site is also computed at every group size."""
        data = bench.collect()  # before the hooks, which would watch the sampling of the data
        sizes = {site.name: gene.sizes for gene in bench.space.genes for site in gene.sites}
        noise: dict[tuple[str, int], float] = defaultdict(float)
        energy: dict[str, float] = defaultdict(float)

        def compare(site: Site, layer: nn.Module, x: Tensor, output: Tensor) -> None:
            energy[site.name] += float(output.double().square().sum())
            for size in sizes[site.name]:
                quantized = bench.variants.of_size(size).layers[site.name](x)
                noise[site.name, size] += float((quantized.double() - output.double()).square().sum())

        for size in {size for fitting in sizes.values() for size in fitting}:
            bench.variants.of_size(size)  # before the hooks, which would watch the fit
        sites = [site for gene in bench.space.genes for site in gene.sites]
        with bench.variants.rewrite.installed(bench.model), watching(bench.model, sites, compare):
            for x, t, y in data.batches(bench.model):
                bench.model.denoise(x, t, y)
        return [
            {g: sum(noise[s.name, g] / max(energy[s.name], 1e-30) for s in gene.sites) for g in gene.sizes}
            for gene in bench.space.genes
        ]
