"""Round a network segment by segment; finished segments are saved, and a killed fit goes on behind the last one.

A saved segment is read back bit for bit and the data passes through it again, so that a resumed fit ends with the bytes
of an undisturbed one. Nothing but the rounded weights is stored: the activations at a boundary cost one forward pass to
make again, and would be the largest file.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn
from tqdm import tqdm

from qdit.errors import UserError
from qdit.rounding.blocks import Segment, Walk, segments
from qdit.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from qdit.quantize import Fit

Weights = dict[str, Tensor]


def round_segments(
    fit: "Fit",
    round_segment: Callable[[Walk, Segment], Weights],
    layers: Callable[[Segment, Mapping[str, Tensor]], Mapping[str, nn.Module]],
) -> Weights:
    """The rounded weights [out, in] of all sites whose weight is quantized.

    Args:
        fit: the fit; its calibration data is asked for only if a segment is not finished.
        round_segment: rounds the weights of a segment that the walk has come to.
        layers: the layers of a segment, with its rounded weights, through which later segments get their inputs.
    """
    parts = segments(fit.model.sites(), fit.policy)
    originals = [{s.name: fit.weight_of(s) for s in part.sites if fit.rounds(s)} for part in parts]
    found = [load_finished(fit.folder, part, like) for part, like in zip(parts, originals, strict=True)]
    missing = [n for n, weights in enumerate(found) if weights is None]
    last = max(missing, default=-1)
    walk = Walk(fit.model, fit.data, parts) if missing else None
    for n, part in enumerate(tqdm(parts[: last + 1], desc="rounding", unit="block", disable=None)):
        assert walk is not None
        weights = found[n]
        if weights is None:
            weights = found[n] = round_segment(walk, part)
            save_finished(fit.folder, part, weights)
        if n < last:
            walk.advance(part, layers(part, weights))
    return {name: weight for weights in found if weights for name, weight in weights.items()}


def load_finished(folder: Path | None, segment: Segment, like: Mapping[str, Tensor]) -> Weights | None:
    """The weights of a segment that an earlier run saved, None if there are none.

    Args:
        folder: where they are; None has nothing saved.
        segment: names the file.
        like: what the file must hold, for names, shapes and device; a segment without weights is always finished.

    Raises:
        UserError: the file is damaged or of another model.
    """
    if not like:
        return {}
    path = folder / f"{segment.name}.safetensors" if folder else None
    if path is None or not path.exists():
        return None
    found = load_tensors(path)
    if {name: w.shape for name, w in found.items()} != {name: w.shape for name, w in like.items()}:
        raise UserError(f"{path} holds other weights than this model's {segment.name}; delete it, and it is made again")
    return {name: weight.to(like[name].device) for name, weight in found.items()}


def save_finished(folder: Path | None, segment: Segment, weights: Mapping[str, Tensor]) -> None:
    """Save a segment's rounded weights, whole or not at all."""
    if folder is not None and weights:
        save_tensors(folder / f"{segment.name}.safetensors", weights)
