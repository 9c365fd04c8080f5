"""Round a network segment by segment and save each one, so that a killed fit goes on after the last finished segment.

A saved segment is read back bit for bit, and the data passes through it again, so that a resumed fit ends with the
bytes of an undisturbed one. Only codes and their grids are stored, as `<site>.codes` and so on. The activations
at a boundary can be computed again in one forward pass, and would be the largest file.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from qdit.calibration.blocks import Segment, Walk, segments
from qdit.errors import UserError
from qdit.fit import Fit
from qdit.model.base import Site
from qdit.quant.grid import Rounded, from_tensors, shapes_of, tensors_of
from qdit.quant.spec import QuantSpec, as_rows
from qdit.storage.progress import progress
from qdit.storage.shelf import Place, Shelf

Weights = dict[str, Rounded]
FORMAT = 2  # of the files; part of their folder's name


def round_segments(
    fit: Fit,
    round_segment: Callable[[Walk, Segment], Weights],
    layers: Callable[[Segment, Mapping[str, Rounded]], Mapping[str, nn.Module]],
) -> Weights:
    """The rounded weights [out, in] of all sites whose weight is quantized.

    Args:
        fit: the fit; its calibration data is asked for only if a segment is not finished.
        round_segment: rounds the weights of a segment that the walk has come to.
        layers: the layers of a segment, with its rounded weights, through which later segments get their inputs.
    """
    parts = segments(fit.model.sites(), fit.policy)
    found = [load_finished(fit, part) for part in parts]
    missing = [n for n, weights in enumerate(found) if weights is None]
    last = max(missing, default=-1)
    walk = Walk(fit.model, fit.data, parts, fit.scratch()) if missing else None
    for n, part in enumerate(progress(parts[: last + 1], desc="rounding", unit="block")):
        assert walk is not None
        weights = found[n]
        if weights is None:
            weights = found[n] = round_segment(walk, part)
            save_named(fit.folder, part.name, weights, {})
        if n < last:
            walk.advance(part, layers(part, weights))
    return {name: weight for weights in found if weights for name, weight in weights.items()}


def load_finished(fit: Fit, segment: Segment) -> Weights | None:
    """The weights of a segment that an earlier run saved, None if there are none; a segment without is always finished.

    Raises:
        UserError: the file is of another model.
    """
    sites = [site for site in segment.sites if fit.rounds(site)]
    found = load_named(fit, segment.name, sites, {}) if sites else ({}, {})
    return found[0] if found is not None else None


def load_named(
    fit: Fit, name: str, sites: Sequence[Site], others: Mapping[str, tuple[int, ...]]
) -> tuple[Weights, dict[str, Tensor]] | None:
    """Read what an earlier run saved as `name`: the weights of sites, and other tensors; None if no file can be used.

    Args:
        fit: the fit.
        name: of the segment or of the unit.
        sites: whose weights are in the file.
        others: what else is, with the shapes.

    Raises:
        UserError: the file is of another model.
    """
    if fit.folder is None or (found := Shelf.of(fit.folder).load(name)) is None:
        return None
    expected = {key: shape for site in sites for key, shape in shapes(fit, site).items()} | dict(others)
    if {key: tuple(tensor.shape) for key, tensor in found.items()} != expected:
        path = Shelf.of(fit.folder).path(name)
        raise UserError(f"{path} holds other weights than this model's {name}; delete it, and it is made again")
    tensors = {key: tensor.to(fit.model.device) for key, tensor in found.items()}
    weights = {site.name: from_saved(tensors, site.name, fit.weight_spec(site)) for site in sites}
    return weights, {key: tensors[key] for key in others}


def shapes(fit: Fit, site: Site) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that `as_tensors` gives for a site."""
    spec = fit.weight_spec(site)
    rows = as_rows(fit.weight_of(site), spec).shape[0]
    whole = {"codes": (site.out_features, site.in_features), **shapes_of(rows, spec)}
    return {f"{site.name}.{part}": shape for part, shape in whole.items()}


def save_named(folder: Place | None, name: str, weights: Mapping[str, Rounded], others: Mapping[str, Tensor]) -> None:
    """Save rounded weights, by site, and other tensors in a file that `load_named` reads; whole or not at all."""
    if folder is not None and (weights or others):
        tensors = {key: v for site, weight in weights.items() for key, v in as_tensors(weight, site).items()}
        Shelf.of(folder).save(name, tensors | dict(others))


def as_tensors(weight: Rounded, name: str) -> dict[str, Tensor]:
    """The tensors of a rounded weight, by their names in the file."""
    return {f"{name}.{part}": tensor for part, tensor in {"codes": weight.codes, **tensors_of(weight.grid)}.items()}


def from_saved(tensors: Mapping[str, Tensor], name: str, spec: QuantSpec) -> Rounded:
    """The inverse of `as_tensors`."""
    own = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
    codes = own["codes"]
    return Rounded(codes, from_tensors(own, spec, spec.row_length(codes.shape[1], codes.numel())), spec)
