"""The range rule `hessian`: the multiple of the min-max range that harms the network's output least.

Hessian-guided optimization of TQ-DiT (arXiv 2502.04056, eq. 13-17; defaults are its release's), which PTQ4ViT
(arXiv 2111.12293) has too. A candidate's score is the squared error of its layer's output, weighted by the diagonal of
the Hessian of a task's loss. That takes more than a row of values; `qdit.hessian.refine` searches layer by layer.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.errors import UserError
from qdit.hessian.target import Target
from qdit.quant.ranges import MinMax
from qdit.quant.spec import IDENTITY_BITS, QuantSpec
from qdit.scheme import Scheme

SHARED = ("target", "rounds", "tokens", "seed")
"""What the rules of weights, inputs and operands must agree on: they are searched under one objective."""


@dataclass(frozen=True, kw_only=True)
class Hessian:
    """Of the min-max range times `alpha` … `beta`, and the range itself, the one of least weighted output error.

    Equal candidates keep the min-max range. As a rule of rows alone it finds where the search starts.

    Args:
        target: whose gradients weigh the errors of outputs.
        candidates: steps of the grid, both ends of which are tried; the release leaves out the last one.
        alpha, beta: the ends.
        rounds: of a search that has both sides: weights with inputs as they are, then inputs; queries, then keys;
            probabilities, then values. It stops when nothing changes any more.
        tokens: rows of a layer's input that are looked at, chosen at random from all calibration points, and queries of
            an attention, of whole points. As many as the release looks at: 32 samples of 256.
        seed: of that choice and of the target.

    Raises:
        UserError: a value is out of range.
    """

    target: Target
    candidates: int = 100
    alpha: float = 0.01
    beta: float = 1.2
    rounds: int = 3
    tokens: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.candidates, self.rounds, self.tokens) < 1 or not 0 < self.alpha < self.beta:
            raise UserError(
                f"range hessian: candidates={self.candidates}, rounds={self.rounds}, tokens={self.tokens}, "
                f"alpha={self.alpha}, beta={self.beta}; counts must be at least 1, and 0 < alpha < beta"
            )

    def __call__(self, rows: Float[Tensor, "rows n"], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """(lo, hi), both [rows, 1]: the minimum and the maximum, from which the search starts."""
        return MinMax()(rows, spec)

    def factors(self) -> Float[Tensor, " candidates"]:
        """What the range is multiplied by; 1 comes first, so that it wins a tie."""
        steps = torch.arange(self.candidates + 1, dtype=torch.float64) / self.candidates
        grid = self.alpha + steps * (self.beta - self.alpha)
        return torch.cat([torch.ones(1), grid.float()])


def rules(scheme: Scheme) -> tuple[Hessian | None, Hessian | None, Hessian | None]:
    """The rules of weights, inputs and operands, where they are this one and there is something to quantize."""
    found = (
        scheme.weight.range if scheme.weight_bits < IDENTITY_BITS else None,
        getattr(scheme.activation, "range", None) if scheme.activation_bits < IDENTITY_BITS else None,
        getattr(scheme.attention, "range", None) if scheme.operands else None,
    )
    weight, inputs, own = (rule if isinstance(rule, Hessian) else None for rule in found)
    return weight, inputs, own


def problems(scheme: Scheme) -> list[str]:
    """What the rules do not agree on, one sentence."""
    named = zip(("weight", "activation", "attention"), rules(scheme), strict=True)
    present = [(group, rule) for group, rule in named if rule is not None]
    different = [key for key in SHARED if any(getattr(r, key) != getattr(present[0][1], key) for _, r in present)]
    if not different:
        return []
    values = " and ".join(f"{group}.range.{key}={getattr(rule, key)}" for key in different for group, rule in present)
    return [f"ranges of weights, inputs and operands are searched under one objective; {values} must be equal"]
