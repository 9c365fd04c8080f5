"""What a recipe's rounding would do to a weight and to an input, tried before anything is fitted.

Transforms that choose their factors by the error of a layer's output (AWQ, SVDQuant, grids of α) round candidates as
the recipe will: weights to nearest on its grid and range rule, inputs on dynamic ranges of their own, or on the minimum
and maximum of the sample where the recipe calibrates ranges.

Simpler than the fit that follows, on purpose: weights are rounded to nearest whatever the recipe's rounding, ranges
that are searched or belong to groups of timesteps are minimum and maximum of the sample, and inputs with two regions
have one asymmetric grid. Where a search has group sizes of its own and the recipe's does not divide a layer's channels,
the largest size that divides both stands for it.
"""

from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, get_args

from jaxtyping import Float
from torch import Tensor

from qdit.model.base import Site
from qdit.quant.affine import affine, round_to_grid
from qdit.quant.ranges import MinMax, Range
from qdit.quant.spec import Grid, QuantSpec

if TYPE_CHECKING:
    from qdit.recipe import Recipe


@dataclass(frozen=True)
class Trial:
    """Rounding to try out, as a recipe plans it.

    Args:
        recipe: whose grids and bits are used; its rounding and its transform are not.
    """

    recipe: "Recipe"

    def weight_spec(self, site: Site) -> QuantSpec:
        """How a site's weight is rounded."""
        return _dividing(self.recipe.weight.spec(self.recipe.weight_bits), site)

    def input_spec(self, site: Site) -> QuantSpec:
        """How a site's input is rounded."""
        part = self.recipe.activation
        spec = part.regions.at(site.role, part.spec(self.recipe.activation_bits), part.time)
        assert spec is not None
        if spec.grid not in get_args(Grid):
            spec = replace(spec, grid="asymmetric")
        return _dividing(spec, site)

    def weight(self, site: Site, weight: Float[Tensor, "*many out channels"]) -> Float[Tensor, "*many out channels"]:
        """A weight, or several in a batch, rounded to nearest on grids of their own; unchanged at 16 bits."""
        return _rounded(weight, self.weight_spec(site), self.recipe.weight.range)

    def input(self, site: Site, x: Float[Tensor, "*many rows channels"]) -> Float[Tensor, "*many rows channels"]:
        """Rows of an input, or several in a batch, rounded; unchanged at 16 bits. One grid a tensor spans all rows."""
        return _rounded(x, self.input_spec(site), MinMax())


def _dividing(spec: QuantSpec, site: Site) -> QuantSpec:
    """The spec with groups that fit a site."""
    return spec if spec.group_size is None else replace(spec, group_size=gcd(spec.group_size, site.in_features))


def _rounded(x: Float[Tensor, "*many rows channels"], spec: QuantSpec, rule: Range) -> Tensor:
    """Each of `many` matrices on its own grids."""
    if spec.is_identity:
        return x
    rows = x.reshape(-1, spec.row_length(x.shape[-1], x.shape[-2] * x.shape[-1])).float()
    return round_to_grid(rows, affine(*rule(rows, spec), spec)).to(x.dtype).reshape(x.shape)
