"""Calibration points where timesteps are alike and where they differ: EDA-DM's allocation (arXiv 2401.04585).

With the features f_t of the network at each step of the sampler,

    D_t = how many other steps are within a radius of f_t (mean squared difference),   V_t = Σ_s (1 - cos(f_t, f_s)),
    w_t = D_t + λ V_t,   both scaled to [0, 1] over the steps, λ = 1.2

and the points are shared out ∝ w. The released radius, 3.0, is that of a U-Net's features; here it is relative, a share
of the mean squared difference of two steps. Features are the output of the middle block (a U-Net's are those of its
middle). Where a step would get nothing it gets one point, so that ranges by timestep have data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves

from qdit.calibration.calibration import TrajectoryCalibration
from qdit.calibration.data import CalibrationData
from qdit.checked import Count, Positive
from qdit.errors import UserError
from qdit.quant.time_groups import Time
from qdit.seeding import CALIBRATION

if TYPE_CHECKING:
    from qdit.dataset.base import Source
    from qdit.model.base import DiffusionModel
    from qdit.sampler.sampler import Sampler


def step_weights(
    differences: Float[Tensor, "steps steps"], cosines: Float[Tensor, "steps steps"], radius: float, variety: float
) -> Float[Tensor, " steps"]:
    """w of each step, from the mean squared differences of their features and the cosines between these.

    >>> f = torch.tensor([[1.0, 0], [1, 1], [4, 0]])
    >>> step_weights(*compared(f @ f.T, values=2), radius=3.0, variety=1.2)
    tensor([1.0000, 2.2000, 0.0000])
    """
    near = (differences <= radius).sum(1) - 1.0
    return _scaled(near) + variety * _scaled((1 - cosines).sum(1))


def compared(products: Float[Tensor, "steps steps"], values: int) -> tuple[Tensor, Tensor]:
    """The mean squared differences and the cosines of all pairs of features, [steps, steps]; each is like itself.

    Args:
        products: F Fᵀ of the features F [steps, values].
        values: how many a step has.
    """
    both = products.double()
    own = both.diagonal()
    squares = (own.unsqueeze(1) + own - 2 * both).clamp(min=0).fill_diagonal_(0) / values
    lengths = own.sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    return squares.float(), (both / lengths / lengths.unsqueeze(1)).fill_diagonal_(1).float()


def _products(features: Sequence[Float[Tensor, " values"]]) -> Float[Tensor, "steps steps"]:
    """F Fᵀ in float64, of which two steps are held at a time."""
    made = torch.zeros(len(features), len(features), dtype=torch.float64)
    for n, feature in enumerate(features):
        own = feature.double()
        made[n, : n + 1] = torch.stack([own @ other.double() for other in features[: n + 1]])
    return made + made.tril(-1).T


def _scaled(values: Tensor) -> Tensor:
    """To [0, 1]; zeros where all are equal, but for rounding."""
    width = values.max() - values.min()
    return (values - values.min()) / width if width > 1e-6 else torch.zeros_like(values)


def shared_out(weights: Sequence[float], count: int, least: int = 0) -> list[int]:
    """`count` points for steps, at least `least` each and the others ∝ their weights; the largest remainders round up.

    >>> shared_out([1.0, 2.2, 0.0], 16), shared_out([1.0, 2.2, 0.0], 16, least=1)
    ([5, 11, 0], [5, 10, 1])
    """
    left, total = count - least * len(weights), sum(weights)
    exact = [left * w / total for w in weights] if total else [left / len(weights)] * len(weights)
    whole = [int(share + 1e-9) for share in exact]
    order = sorted(range(len(exact)), key=lambda n: (whole[n] - exact[n], n))
    for n in order[: left - sum(whole)]:
        whole[n] += 1
    return [least + share for share in whole]


@dataclass(frozen=True, kw_only=True)
class WeightedCalibration(TrajectoryCalibration):
    """Steps in given shares, spread evenly over trajectories.

    Args:
        weights: of the sampler's steps, the noisiest first; only their ratios count.
    """

    weights: Sequence[float]

    def kept_steps(self, trajectory: int, num_steps: int, seed: int) -> list[int]:
        """See `TrajectoryCalibration`."""
        return sorted(step for own, step in self.states(self.num_samples, num_steps, seed) if own == trajectory)

    def states(self, count: int, num_steps: int, seed: int) -> list[tuple[int, int]]:
        """See `TrajectoryCalibration`; there are more trajectories where a step has more points than these.

        Raises:
            UserError: there are other numbers of weights and steps.
        """
        if len(self.weights) != num_steps:
            raise UserError(f"calibration: {len(self.weights)} weights for {num_steps} steps of the sampler")
        counts = shared_out(self.weights, count, least=int(count >= num_steps))
        steps = [step for step, n in enumerate(counts) for _ in range(n)]
        trajectories = max(ceil(count / min(self.per_trajectory, num_steps)), max(counts))
        order = np.random.default_rng([seed, self.seed]).permutation(count)
        return [(int(i) % trajectories, steps[i]) for i in order]


@dataclass(frozen=True, kw_only=True)
class DensityCalibration(TrajectoryCalibration):
    """Steps in the shares of EDA-DM's weights; see the module.

    Args:
        radius: within which steps are alike, as a share of the mean squared difference of two steps.
        variety: λ, the weight of V.
        probes: trajectories whose features are compared.
    """

    radius: Positive = 0.5
    variety: Positive = 1.2
    probes: Count = 4

    def kept_steps(self, trajectory: int, num_steps: int, seed: int) -> list[int]:
        """Evenly many points of all steps: what is known before features are."""
        return self.weighted([1.0] * num_steps).kept_steps(trajectory, num_steps, seed)

    def weighted(self, weights: Sequence[float]) -> WeightedCalibration:
        """The choice of points with these weights."""
        own = {key: getattr(self, key) for key in ("num_samples", "per_trajectory", "null_share", "batch_size", "seed")}
        return WeightedCalibration(**own, weights=weights)

    def collect(self, model: "DiffusionModel", sampler: "Sampler", dataset: "Source", seed: int) -> CalibrationData:
        """See `TrajectoryCalibration`; the probes are sampled first."""
        return self.settled(model, sampler, dataset, seed).collect(model, sampler, dataset, seed)

    def settled(self, model: "DiffusionModel", sampler: "Sampler", dataset: "Source", seed: int) -> WeightedCalibration:
        """The choice of points by the features of the probes, which are sampled."""
        squares, cosines = compared(*self.products(model, sampler, dataset, seed))
        steps = len(squares)
        mean = float(squares.sum() / max(steps * (steps - 1), 1))
        weights = step_weights(squares, cosines, self.radius * mean, self.variety)
        return self.weighted(weights.tolist())

    @torch.no_grad()
    def products(
        self, model: "DiffusionModel", sampler: "Sampler", dataset: "Source", seed: int
    ) -> tuple[Float[Tensor, "steps steps"], int]:
        """F Fᵀ of the features F [steps, values] of the probes together, in float64, and how many values a step has.

        Features are the outputs of the middle block; of one that puts out image and text the image's, told by the
        tokens of its queries. Probes are sampled one by one, so that the features of one are held at a time.
        """
        blocks = list(dict.fromkeys(site.path for site in model.sites() if site.path is not None))
        middle = blocks[len(blocks) // 2]
        tokens = {site.tokens for site in model.sites() if site.role == "qkv"}
        seen: list[Tensor] = []
        found: dict[int, Tensor] = {}

        def see(module: Any, args: Any, output: Any) -> None:
            streams = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
            seen.append(next((x for x in reversed(streams) if x.ndim == 3 and x.shape[1] in tokens), streams[0]))

        def record(step: int, timestep: Time, x: Tensor, output: Tensor | None) -> None:
            found[step] = torch.cat([x.float().flatten().cpu() for x in seen])  # guidance may take two calls
            seen.clear()

        total, values = torch.zeros(1, 1, dtype=torch.float64), 0
        handle = model.denoiser.get_submodule(middle).register_forward_hook(see)
        try:
            for index in range(CALIBRATION, CALIBRATION + self.probes):
                labels = dataset.labels([index], seed + self.seed)
                sampler.sample(model, [index], labels, seed + self.seed, callback=record)
                features = [found[step] for step in sorted(found)]
                total, values = total + _products(features), values + len(features[0])
        finally:
            handle.remove()
        return total, values
