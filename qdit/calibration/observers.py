"""Observers: statistics of the inputs of sites, streamed from hooks on the full-precision model.

Of the values a fair sample is kept with its exact extremes (`reservoir`), so that memory does not grow with the amount
of calibration data.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from qdit.calibration.data import CalibrationData, Pass
from qdit.calibration.reservoir import GroupedReservoirs
from qdit.calibration.streams import values_of
from qdit.model.base import Attention, DiffusionModel, Site
from qdit.nn.attention import Attend
from qdit.nn.clock import each_row
from qdit.nn.linear import Observed, QuantLinear
from qdit.nn.patches import patch_size, patches
from qdit.nn.replace import replaced
from qdit.quant.time_groups import ALL, Groups


def site_input(layer: nn.Module, x: Tensor) -> Tensor:
    """The rows that a layer multiplies: flattened patches for a patch embedding, the input itself otherwise."""
    patch = patch_size(layer)
    return x if patch is None else patches(x, patch)


def changed_input(layer: nn.Module, x: Tensor) -> Tensor:
    """The rows that a layer multiplies, after what a transformed layer does to its input first (a run-time change)."""
    rows = site_input(layer, x)
    return layer.quantizer(rows) if isinstance(layer, QuantLinear) and layer.quantizer is not None else rows


def attended_rows(model: DiffusionModel, site: str, y: Tensor, rows: Tensor) -> Tensor:
    """Those of a site's rows [B, rows, …] that anything depends on, [n, …]; all of them, as they are, if all count."""
    attended = model.attended(site, y)
    return rows if attended is None else rows[attended]


def _with_times(model: DiffusionModel, site: str, y: Tensor, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """`attended_rows`, and the timestep of each of its rows in dimension 0."""
    attended = model.attended(site, y)
    if attended is None:
        return rows, each_row(t, len(rows))
    return rows[attended], t.repeat_interleave(attended.sum(1))


@contextmanager
def watching(model: DiffusionModel, sites: list[Site], see) -> Iterator[None]:
    """Observe sites: call `see(site, layer, input, output)` whenever one runs; the hooks are removed afterwards."""
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
    model: DiffusionModel,
    sites: list[Site],
    data: CalibrationData,
    first: Mapping[str, nn.Module] | None = None,
    groups: Groups = ALL,
    by_channel: Container[str] = (),
    cuts: Mapping[str, int] | None = None,
) -> dict[str, list[Any]]:
    """A sample of each site's input values [n] over the calibration data, extremes included, by group of timesteps.

    Args:
        model: the network in full precision.
        sites: the layers whose inputs are observed.
        data: the calibration points.
        first: what a site does to its input before it is quantized, if anything.
        groups: of timesteps; each must have points.
        by_channel: sites whose channels are told apart; they have a `qdit.calibration.reservoir.Sampled`
            whose rows are channels.
        cuts: sites whose input is two side by side, and where the second begins; they have pairs of samples.
    """
    cuts = cuts or {}
    others = {name: GroupedReservoirs(groups) for name in cuts}
    widths = {site.name: site.in_features if site.name in by_channel else 1 for site in sites}
    reservoirs = {name: GroupedReservoirs(groups, channels) for name, channels in widths.items()}
    first = first or {}
    calls = Pass(model, data)

    def see(site: Site, layer: nn.Module, x: Tensor, _: Tensor) -> None:
        rows = site_input(layer, x)
        rows = first[site.name](rows) if site.name in first else rows
        rows, times = _with_times(model, site.name, calls.y, calls.t, rows)
        if site.name in cuts:
            others[site.name].add(rows[..., cuts[site.name] :], times)
            rows = rows[..., : cuts[site.name]]
        reservoirs[site.name].add(rows.movedim(-1, 1) if widths[site.name] > 1 else rows, times)

    with watching(model, sites, see):
        calls.run()
    made = {name: [*(found.sampled() if name in by_channel else found.values())] for name, found in reservoirs.items()}
    return made | {name: [*zip(made[name], found.values(), strict=True)] for name, found in others.items()}


@torch.no_grad()
def input_maxima(
    model: DiffusionModel, sites: list[Site], data: CalibrationData, see: Callable[[Site, Tensor, Tensor], None]
) -> None:
    """Call `see(site, maxima [rows, in], timesteps [rows])` for every batch and site; a video's frames are rows.

    The maxima are the greatest magnitudes of each channel over the tokens of a sample, in float32, after what a
    transformed layer does to its input first.
    """
    calls = Pass(model, data)

    def reduce(site: Site, layer: nn.Module, x: Tensor, _: Tensor) -> None:
        rows = changed_input(layer, x)
        if (attended := model.attended(site.name, calls.y)) is not None:
            rows = rows.masked_fill(~attended.unsqueeze(-1), 0)
        maxima = rows.reshape(len(rows), -1, rows.shape[-1]).abs().amax(1).float()
        see(site, maxima, each_row(calls.t, len(rows)))

    with watching(model, sites, reduce):
        calls.run()


@contextmanager
def watching_operands(
    model: DiffusionModel, attentions: Sequence[Attention], see: Callable[[str, Tensor], None], by_rows: bool = False
) -> Iterator[None]:
    """Call `see(site, operand's values)` whenever an attention runs, in full precision; it is as it was afterwards.

    Args:
        model: whose attentions.
        attentions: that are observed.
        see: takes values [rows, heads, tokens, channels]; a video's frames are rows of their own.
        by_rows: the probabilities of long sequences may come in parts, some queries at a time.
    """
    shown = {
        a.processor: Attend(**{o: Observed(None, partial(see, site), by_rows) for o, site in a.sites.items()})
        for a in attentions
    }
    with replaced(model.denoiser, shown):
        yield


@torch.no_grad()
def operand_values(
    model: DiffusionModel,
    attentions: Sequence[Attention],
    data: CalibrationData,
    sites: Mapping[str, Groups],
    by_head: Container[str] = (),
    scales: Mapping[str, Tensor] | None = None,
) -> dict[str, list[Tensor]]:
    """A sample of the values of operands over the calibration data, extremes included, by group of timesteps.

    Args:
        model: in full precision.
        attentions: whose operands.
        data: the calibration points.
        sites: of the operands, with the groups of timesteps of each.
        by_head: sites whose heads are told apart, [heads, n]; others have one row of values, [n].
        scales: by site, what an operand is multiplied by first, if anything.
    """
    heads = {site: a.heads if site in by_head else 1 for a in attentions for site in a.sites.values()}
    reservoirs = {site: GroupedReservoirs(groups, heads[site]) for site, groups in sites.items()}
    calls = Pass(model, data)

    def see(site: str, x: Tensor) -> None:
        if site not in reservoirs:
            return
        x = x.float() * scales[site] if scales and site in scales else x
        if model.attended(site, calls.y) is None:
            reservoirs[site].add(x, each_row(calls.t, len(x)))
        else:  # tokens are rows: [tokens, heads, channels]
            reservoirs[site].add(*_with_times(model, site, calls.y, calls.t, x.transpose(1, 2)))

    chosen = [a for a in attentions if reservoirs.keys() & a.sites.values()]
    with watching_operands(model, chosen, see, by_rows=True):
        calls.run()
    return {site: reservoir.values() for site, reservoir in reservoirs.items()}


@contextmanager
def outputs(network: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Capture what modules return in the next forward pass, by path, as nodes of its graph; first calls only.

    Blocks of a joint attention return several tensors.
    """
    seen: dict[str, list[Tensor]] = {}

    def node(x: Tensor) -> Tensor:
        return x if x.requires_grad else x.detach().requires_grad_()

    def catch(path: str, output: Any) -> Any:
        if path in seen:
            return output
        made = tree_map_only(Tensor, lambda x: node(x) if x.is_floating_point() else x, output)
        seen[path] = values_of(made)
        return made

    handles = [
        network.get_submodule(path).register_forward_hook(lambda module, args, output, path=path: catch(path, output))
        for path in paths
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
