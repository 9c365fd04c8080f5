"""Trial quantization: the output error of a layer under a recipe's bits and grids, before anything is fitted.

Transforms that choose their factors by the error of a layer's output (AWQ, SVDQuant, the grid search of α) quantize
each candidate roughly as the recipe will: weights to nearest with its grid and range rule, inputs with dynamic ranges,
or with the minimum and maximum of the sample where the recipe's ranges are static (and powers of two a channel, or
clusters of channels, chosen on the sample, where it has these).

It is simpler than the fit that follows, on purpose: weights are rounded to nearest whatever the recipe's rounding;
ranges that the fit would search, or have for each group of timesteps, are the minimum and maximum of the sample; inputs
with two regions have one asymmetric grid. Where the recipe's group size does not divide a layer's channels (because a
search will choose it), the largest size that divides both is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import gcd

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.activation.channels import rounded_by_channel
from qdit.activation.clustered import rounded_by_cluster
from qdit.errors import UserError
from qdit.model.base import DiffusionModel, Site
from qdit.nn.patches import matrix
from qdit.quant.grid import covering, shared
from qdit.quant.ranges import MinMax, Range, range_of
from qdit.quant.spec import QuantSpec
from qdit.scheme import Scheme
from qdit.transform.inputs import Input

CANDIDATE_VALUES = 2**24  # values of candidates' inputs, weights and outputs that are held at once: 64 MiB

Way = Callable[[Tensor], Tensor]
"""An orthogonal change R of the channels: x R of rows x, be they of an input or of a weight."""


def unchanged(rows: Tensor) -> Tensor:
    """The change of rows that does nothing."""
    return rows


@dataclass(frozen=True)
class Trial:
    """Rounding to try out, as a scheme plans it.

    Args:
        recipe: whose grids and bits are used, and nothing else of it.
        later: by site, the ways in which later steps of a chain may still change its rows before they are rounded.
            They will choose the best, and `OutputError` takes the best; `weight` and `input` round what they are given.
    """

    recipe: Scheme
    later: Mapping[str, tuple[Way, ...]] = field(default_factory=dict)

    def weight_spec(self, site: Site) -> QuantSpec:
        """How a site's weight is rounded."""
        part = self.recipe.weight
        spec = part.at(site.role, part.spec(self.recipe.weight_bits))
        assert spec is not None
        return _dividing(spec, site)

    def input_spec(self, site: Site) -> QuantSpec:
        """How a site's input is rounded, but for the exponents of its channels."""
        part = self.recipe.activation
        spec = part.regions.at(site.role, part.spec(self.recipe.activation_bits), part.time)
        assert spec is not None
        if not (spec.is_integer or spec.has_levels):
            spec = replace(spec, grid="asymmetric")
        return _dividing(spec, site)

    def weight(self, site: Site, weight: Float[Tensor, "*many out channels"]) -> Float[Tensor, "*many out channels"]:
        """A weight, or several in a batch, rounded to nearest on grids of their own; unchanged at 16 bits."""
        return _rounded(weight, self.weight_spec(site), self.recipe.weight.range)

    def input(self, site: Site, x: Float[Tensor, "*many rows channels"]) -> Float[Tensor, "*many rows channels"]:
        """Rows of an input, or several in a batch, rounded; unchanged at 16 bits. A grid per tensor spans all rows."""
        spec, part = self.input_spec(site), self.recipe.activation
        own = None if spec.is_identity else part.at(site.role, spec)
        if own is not None and own.shifts:
            return rounded_by_channel(x, spec, own.shifts)
        if own is not None and own.clusters:
            return rounded_by_cluster(x, spec, own.clusters)
        return _rounded(x, spec, MinMax())

    def ways(self, site: Site) -> tuple[Way, ...]:
        """What may happen to a site's rows later."""
        return self.later.get(site.name, (unchanged,))

    def before(self, step: Mapping[str, tuple[Way, ...]]) -> "Trial":
        """The trial of what comes before a step that changes rows in one of these ways, by site."""
        own = {name: self.later.get(name, (unchanged,)) for name in step}
        composed = {name: tuple(_one_after_the_other(a, b) for a in step[name] for b in own[name]) for name in step}
        return replace(self, later={**self.later, **composed})

    @property
    def of_weights(self) -> "Trial":
        """The same with inputs in full precision."""
        return replace(self, recipe=replace(self.recipe, activation_bits=16))


def _dividing(spec: QuantSpec, site: Site) -> QuantSpec:
    """The spec with groups that fit a site."""
    return spec if spec.group_size is None else replace(spec, group_size=gcd(spec.group_size, site.in_features))


def _rounded(x: Float[Tensor, "*many rows channels"], spec: QuantSpec, rule: Range) -> Tensor:
    """Each of `many` matrices on its own grids."""
    if spec.is_identity:
        return x
    rows = x.reshape(-1, spec.row_length(x.shape[-1], x.shape[-2] * x.shape[-1])).float()
    items = x.numel() // (x.shape[-1] * x.shape[-2])
    whole = shared(rows, spec, items)
    return covering(rows, *range_of(rule, rows, spec, whole), spec, whole).round(rows).to(x.dtype).reshape(x.shape)


def _one_after_the_other(first: Way, then: Way) -> Way:
    return lambda rows: then(first(rows))


class OutputError:
    """The output error of all quantized layers that consume (read) one input, for factors r of the input's channels.

        Σ ‖ Q(x / r) Q(W diag(r))ᵀ - x Wᵀ ‖²        the sum is over the layers

    Where a later step may rotate by R, the product is Q(x / r R) Q(W diag(r) R)ᵀ; of several R the least error counts.

    Args:
        trial: rounds.
        model: has the weights.
        read: the input.
        x: rows of it in full precision, float32.

    Raises:
        UserError: the rows are not finite.
    """

    def __init__(self, trial: Trial, model: DiffusionModel, read: Input, x: Float[Tensor, "rows channels"]) -> None:
        if not x.isfinite().all():
            raise UserError(f"transform: the inputs of {read.name} are not finite; try dtype=float32")
        self.trial, self.sites = trial, read.quantized
        self.x = x.to(model.device)
        self.weights = [matrix(model.denoiser.get_submodule(site.name)).float() for site in self.sites]
        self.exact = [self.x @ weight.T for weight in self.weights]

    def __call__(self, factors: Float[Tensor, "candidates channels"]) -> Float[Tensor, " candidates"]:
        """The error of each candidate r, float64."""
        rows, channels = self.x.shape
        largest = max(len(weight) for weight in self.weights)
        held = max(1, CANDIDATE_VALUES // (rows * channels + largest * (rows + channels)))
        return torch.cat([self._errors(part) for part in factors.to(self.x).split(held)])

    def _errors(self, factors: Float[Tensor, "candidates channels"]) -> Float[Tensor, " candidates"]:
        ways = zip(*(self.trial.ways(site) for site in self.sites), strict=True)
        return torch.stack([self._of_way(factors.unsqueeze(1), way) for way in ways]).amin(0)

    def _of_way(self, factors: Float[Tensor, "candidates 1 channels"], way: tuple[Way, ...]) -> Tensor:
        x = self.trial.input(self.sites[0], way[0](self.x / factors))
        total = torch.zeros(len(factors), dtype=torch.float64, device=self.x.device)
        for site, change, weight, exact in zip(self.sites, way, self.weights, self.exact, strict=True):
            made = x @ self.trial.weight(site, change(weight * factors)).mT
            total += made.sub_(exact).square_().sum((1, 2), dtype=torch.float64)
        return total
