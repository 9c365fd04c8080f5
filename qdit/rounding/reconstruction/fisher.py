"""The diagonal Fisher information of unit outputs: how sensitive the network's output is to an error in each of them.

BRECQ (Li et al., arXiv 2102.05426, eq. 10) weighs the squared error of each output z of a unit by the squared gradient
of the task's loss. The task here is regression, so the loss is the likelihood of a Gaussian around the prediction, and
its Fisher information with respect to z is E (Jᵀ v)² with J = dε/dz and random signs v. One backward pass of the
full-precision network, with one v per point, gives an estimate for all units at once. The empirical variant (the
gradient of the distance to the full-precision output) would be 0, because it is taken at that very output.

The cost is linear in depth: one forward and one backward pass, `POINTS` points at a time, before the first unit learns.
Squares are averaged over a point's tokens, which leaves [points, 1, channels] for each unit. BRECQ keeps a value for
each token, which would take as much memory as the activations of all units together.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.calibration.observers import outputs
from qdit.calibration.replay import by_point
from qdit.execution import repeatable
from qdit.model.base import DiffusionModel
from qdit.rounding.reconstruction.units import Unit
from qdit.seeding import generator

log = logging.getLogger("qdit")
POINTS = 4  # in one backward pass, which holds all their activations at once


def importances(
    model: DiffusionModel, data: CalibrationData, units: Sequence[Unit], seed: int
) -> dict[str, list[Tensor]]:
    """The mean squared gradient of each tensor that a unit returns, relative to the unit's mean; by the unit's name.

    They are on the CPU. Shapes are [points, 1, channels] for tokens, [points, channels, 1, 1] for images, [points,
    channels] for vectors; [points, 1, …] where a point has several rows (frames, or places of a video).

    The unit after the blocks is left out: its output is the network's, of which all entries count equally.

    Args:
        model: the network in full precision.
        data: the calibration points.
        units: whose outputs; the gradients of several copies of a unit's layer are added up.
        seed: of the random signs.
    """
    places = {u.name: [path, *u.twins] for u in units if (path := u.layer or u.segment.block) is not None}
    paths = [path for group in places.values() for path in group]
    found: dict[str, list[list[Tensor]]] = {name: [] for name in places}
    sizes: dict[str, list[int]] = {}
    first = 0
    for x, t, y in replace(data, batch_size=POINTS).batches(model):
        with torch.enable_grad(), repeatable(model.device), outputs(model.denoiser, paths) as seen:
            output = model.denoise(x, t, y)
            signs = torch.stack([_signs(seed, first + n, output[0]) for n in range(len(x))]).to(output)
            nodes = [node for path in paths for node in seen[path]]
            got = iter(torch.autograd.grad(output, nodes, signs, materialize_grads=True))
            gradients = {path: [next(got).float() for _ in seen[path]] for path in paths}
        for name, group in places.items():
            squares = [
                torch.stack(copies).sum(0).square() for copies in zip(*(gradients[p] for p in group), strict=True)
            ]
            sizes[name] = [each.numel() // len(x) for each in squares]
            found[name].append([_per_channel(each, len(x)).cpu() for each in squares])
        first += len(x)
    joined = {name: [torch.cat(parts) for parts in zip(*batches, strict=True)] for name, batches in found.items()}
    return {name: _relative(name, squares, sizes[name]) for name, squares in joined.items()}


def _relative(name: str, squares: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Squares relative to the mean of so many entries each; all 1 where the prediction does not depend on any.

    That is so behind a gate of 0.
    """
    total = sum(sizes)
    mean = torch.stack([own.mean() * (size / total) for own, size in zip(squares, sizes, strict=True)]).sum()
    if mean == 0:
        log.warning("adaround: nothing reaches the prediction from %s, whose outputs count alike", name)
        return [torch.ones_like(own) for own in squares]
    return [own / mean for own in squares]


def _signs(seed: int, point: int, like: Tensor) -> Tensor:
    bits = torch.randint(0, 2, like.shape, generator=generator(seed, "fisher", point))
    return bits * 2.0 - 1.0


def _per_channel(squares: Tensor, points: int) -> Tensor:
    """Means over all dimensions but points and channels; channels are dimension 1 of images and the last of tokens.

    Where a point has several rows (frames, or places of a video), these are a dimension of their own: see `by_point`.
    """
    if squares.ndim == 4:
        means = squares.mean((2, 3), keepdim=True)
    else:
        means = squares.mean(tuple(range(1, squares.ndim - 1)), keepdim=True) if squares.ndim > 2 else squares
    return means if len(means) == points else by_point(means, points).mean(1, keepdim=True)
