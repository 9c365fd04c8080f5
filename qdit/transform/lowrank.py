"""SVDQuant: a low-rank branch in 16 bits holds the largest singular components of a weight; the residual is quantized.

    W = R + L₁ L₂        y = Q(x) Q(R)ᵀ + x L₂ᵀ L₁ᵀ        L₁ L₂ = SVD_r(W)

Li et al., "SVDQuant" (arXiv 2411.05007): a scaling first (`smooth_lowrank`) moves the inputs' outliers into the weight,
where a few singular components hold them, so that the residual R is small and even. The branch is then fitted again to
what rounding leaves,

    L₁ L₂ ← SVD_r(W - Q(R))

and so on for as long as the error of the layer's output falls, |x Rᵀ - Q(x) Q(R)ᵀ|² over rows x of its full-precision
input; Q has the bits and grids of the recipe, with weights rounded to nearest. The residual R then goes through the
recipe's own rounding as any weight does. The branch reads the input after all changes that a chain makes to it at run
time, so that later steps may scale and rotate what was split; the choice allows for a later rotation, not for a later
scaling.

Left out: the unsigned codes that the release has behind GELU, where it shifts inputs to be positive; fused kernels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.checked import Checked
from qdit.ledger import RunTime
from qdit.model.base import DiffusionModel, Site
from qdit.model.roles import meant
from qdit.nn.patches import matrix
from qdit.storage.progress import progress
from qdit.transform.folding import Draft, Drafted
from qdit.transform.inputs import sample_rows
from qdit.transform.trial import Trial, unchanged

EXACT = 512  # rows or columns up to which the singular value decomposition is exact
OVERSAMPLING = 8  # singular vectors beyond the rank that the randomized decomposition computes
POWER = 4  # its power iterations
ROWS = 512  # rows of an input on which output errors are measured

Factors = tuple[Float[Tensor, "out rank"], Float[Tensor, "rank channels"]]


def truncated(weight: Float[Tensor, "out channels"], rank: int) -> Factors:
    """The truncated SVD as two factors, each of which takes the square roots of the singular values.

    Large matrices are decomposed from random projections (Halko et al., arXiv 0909.4061) with a fixed seed; the global
    random state is not touched.

    >>> up, down = truncated(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 1)
    >>> (up @ down).round(decimals=4) + 0.0
    tensor([[3., 0.],
            [0., 0.]])
    """
    if min(weight.shape) <= EXACT or 2 * (rank + OVERSAMPLING) >= min(weight.shape):
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        with torch.random.fork_rng([weight.device] if weight.is_cuda else []):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(weight, rank + OVERSAMPLING, POWER)
            right = right.T
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def alternated(
    weight: Float[Tensor, "out channels"],
    rank: int,
    iterations: int,
    rounded: Callable[[Tensor], Tensor],
    error: Callable[[Tensor, Tensor], float],
) -> tuple[Factors, list[float]]:
    """The factors of least error, and the errors of all that were tried: each is smaller, except the last.

    Args:
        weight: W.
        rank: of the branch.
        iterations: how often, at most, the branch is fitted again to W - Q(R).
        rounded: gives Q(R) of a residual R.
        error: of a residual R and Q(R).
    """
    target, best = weight, None
    errors: list[float] = []
    for _ in range(iterations + 1):
        found = truncated(target, rank)
        rest = weight - found[0] @ found[1]
        codes = rounded(rest)
        errors.append(error(rest, codes))
        if best is not None and not errors[-1] < errors[-2]:
            break
        target, best = weight - codes, found
    assert best is not None
    return best, errors


@dataclass(frozen=True, kw_only=True)
class LowRank(Drafted, Checked):
    """Split a branch off the weights.

    Args:
        name, roles: see `qdit.transform.folding.Drafted`.
        rank: of the branch; 0 splits nothing.
        iterations: how often, at most, the branch is fitted again to W - Q(R); 0 needs no data.
        seed: of the rows of inputs on which errors are measured.

    Raises:
        UserError: a value is out of range.
    """

    rank: Annotated[int, Ge(0), "the paper has 32 in layers 1,152 to 3,072 wide"]
    iterations: Annotated[int, Ge(0), "the paper has up to 100"]
    seed: int

    @property
    def needs_calibration(self) -> bool:
        """See `Transform`."""
        return self.rank > 0 and self.iterations > 0

    def chosen(self, sites: list[Site]) -> list[Site]:
        """The sites that are split."""
        return [site for site in sites if meant(site.role, self.roles) and self.rank]

    def problems(self, sites: list[Site]) -> list[str]:
        """See `Transform`."""
        found = super().problems(sites)
        least = min(self.chosen(sites), key=_most, default=None)
        if least is not None and self.rank > _most(least):
            found.append(
                f"transform.rank={self.rank} is more than {least.name} has ({least.in_features} inputs, "
                f"{least.out_features} outputs); at most {_most(least)} is possible, and a few percent of it usual"
            )
        return found

    def carriers(self, model: DiffusionModel, sites: list[Site]) -> dict[str, str | None]:
        """See `Transform`: a branch cannot be folded into another layer."""
        return {site.name: None for site in self.chosen(sites)}

    def run_time(self, model: DiffusionModel, sites: list[Site]) -> list[RunTime]:
        """See `Transform`: two 16-bit factors of each layer, and the products with them."""
        values = {site: self.rank * (site.in_features + site.out_features) for site in self.chosen(sites)}
        return [RunTime(site, 16 * count, count, weight_bits=16 * count) for site, count in values.items()]

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """The factors `up/<site>` [out, rank] and `down/<site>` [rank, in] of every layer, float32, on the CPU."""
        chosen = self.chosen(sites)
        if not self.needs_calibration:
            return _named({site.name: truncated(_weight(model, site), self.rank) for site in chosen})
        inputs = self.inputs(model, chosen)
        rows = sample_rows(model, inputs, collect(), ROWS, self.seed)
        found: dict[str, Factors] = {}
        for each in progress(inputs, desc="branches", unit="input"):
            x = rows.pop(each.name).to(model.device)
            found |= {site.name: self.factors(_weight(model, site), site, x, trial) for site in each.quantized}
        return _named(found)

    def factors(self, weight: Tensor, site: Site, x: Float[Tensor, "rows channels"], trial: Trial) -> Factors:
        """A layer's factors, given rows of its input; where a later step may change these, under its best change."""
        least, best = float("inf"), truncated(weight, self.rank)
        for way in trial.ways(site):
            exact, turned = way(x), way(weight)
            inputs = trial.input(site, exact)

            def error(rest: Tensor, codes: Tensor, exact: Tensor = exact, inputs: Tensor = inputs) -> float:
                return float((exact @ rest.T - inputs @ codes.T).square().mean())

            (up, down), errors = alternated(turned, self.rank, self.iterations, partial(trial.weight, site), error)
            if min(errors) < least:
                back = way(torch.eye(len(x.T)).to(x)).T  # a way is a product with an orthogonal matrix
                least, best = min(errors), (up, down if way is unchanged else down @ back)
        return best

    def edit(self, draft: Draft, sites: list[Site], measured: dict[str, Tensor]) -> None:
        """See `Step`."""
        for site in self.chosen(sites):
            draft.split(site.name, measured[f"up/{site.name}"], measured[f"down/{site.name}"])


def _most(site: Site) -> int:
    """The rank of a layer's weight."""
    return min(site.in_features, site.out_features)


def _weight(model: DiffusionModel, site: Site) -> Float[Tensor, "out channels"]:
    """A layer's weight, float32."""
    return matrix(model.denoiser.get_submodule(site.name)).float()


def _named(found: dict[str, Factors]) -> dict[str, Tensor]:
    """The factors by the names under which they are kept."""
    ups = {f"up/{name}": up.contiguous().cpu() for name, (up, _) in found.items()}
    return ups | {f"down/{name}": down.contiguous().cpu() for name, (_, down) in found.items()}
