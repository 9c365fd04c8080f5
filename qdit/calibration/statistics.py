"""Streaming statistics of site inputs, taken by hooks on the full-precision model; nothing grows with the data."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdit.calibration.calibration import CalibrationData
from qdit.layers import QuantLinear, patch_size
from qdit.model.base import DiffusionModel, Site


class ValueReservoir:
    """The exact minimum and maximum and about `size` values of everything seen, thinned evenly.

    When full, every second value is dropped and from then on every second new one is kept, so that all batches weigh
    the same and the result does not depend on a random stream.
    """

    def __init__(self, size: int = 2**18) -> None:
        self.size, self.stride = size, 1
        self.kept: list[Tensor] = []
        self.extremes = torch.tensor([float("inf"), float("-inf")])

    def add(self, x: Tensor) -> None:
        """Take in a tensor of any shape."""
        flat = x.detach().flatten()
        lo, hi = flat.aminmax()
        self.extremes = torch.stack(
            [torch.minimum(self.extremes[0], lo.cpu()), torch.maximum(self.extremes[1], hi.cpu())]
        )
        self.kept.append(flat[:: self.stride].float().cpu())
        while sum(map(len, self.kept)) > self.size:
            self.kept = [torch.cat(self.kept)[::2]]
            self.stride *= 2

    def values(self) -> Tensor:
        """The sample with the extremes, [n]."""
        return torch.cat([*self.kept, self.extremes])


def site_input(layer: nn.Module, x: Tensor) -> Tensor:
    """The rows that a layer multiplies: patches for a patch embedding, the input itself otherwise."""
    patch = patch_size(layer)
    return x if patch is None else F.unfold(x, patch, stride=patch).transpose(1, 2)


@contextmanager
def watching(model: DiffusionModel, sites: list[Site], see) -> Iterator[None]:
    """Call `see(site, layer, input, output)` whenever a site runs; the hooks are gone afterwards."""
    handles = []
    try:
        for site in sites:
            layer = model.denoiser.get_submodule(site.name)
            handles.append(layer.register_forward_hook(lambda m, args, out, site=site: see(site, m, args[0], out)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def input_values(
    model: DiffusionModel, sites: list[Site], data: CalibrationData, first: Mapping[str, nn.Module] | None = None
) -> dict[str, Tensor]:
    """A sample of each site's input values [n] over the calibration data, extremes included.

    Args:
        model, sites, data: whose inputs of which layers on what.
        first: what a site does to its input before it is quantized, if anything.
    """
    reservoirs = {site.name: ValueReservoir() for site in sites}
    first = first or {}

    def see(site: Site, layer: nn.Module, x: Tensor, _: Tensor) -> None:
        rows = site_input(layer, x)
        reservoirs[site.name].add(first[site.name](rows) if site.name in first else rows)

    with watching(model, sites, see):
        for x, t, y in data.batches(model):
            model.denoise(x, t, y)
    return {name: reservoir.values() for name, reservoir in reservoirs.items()}


@torch.no_grad()
def input_maxima(
    model: DiffusionModel, sites: list[Site], data: CalibrationData, see: Callable[[Site, Tensor, Tensor], None]
) -> None:
    """Call `see(site, maxima [samples, in], timesteps [samples])` for every batch and site.

    The maxima are the greatest magnitudes of each channel over the tokens of a sample, in float32, behind what a
    rewritten layer does to its input.
    """
    timesteps: list[Tensor] = []

    def reduce(site: Site, layer: nn.Module, x: Tensor, _: Tensor) -> None:
        rows = site_input(layer, x)
        rows = layer.quantizer(rows) if isinstance(layer, QuantLinear) and layer.quantizer is not None else rows
        see(site, rows.reshape(len(rows), -1, rows.shape[-1]).abs().amax(1).float(), timesteps[-1])

    with watching(model, sites, reduce):
        for x, t, y in data.batches(model):
            timesteps[:] = [t]
            model.denoise(x, t, y)
