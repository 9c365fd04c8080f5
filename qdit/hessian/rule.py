"""The range rule `hessian`: the multiple of the min-max range that harms the network's output least.

Hessian-guided optimization of TQ-DiT (arXiv 2502.04056, eq. 13-17; the defaults are those of its release) and of
PTQ4ViT (arXiv 2111.12293). A candidate's score is the squared error of its layer's output, weighted by the diagonal of
the Hessian of a loss with respect to that output. Other range rules need only the values themselves; this one needs the
layer's inputs and gradients, so the search, layer by layer, is in `qdit.hessian.refine`.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor

from qdit.checked import NEWER, Checked, Count, Newer, Positive
from qdit.errors import UserError
from qdit.hessian.target import Target
from qdit.quant.ranges import MinMax
from qdit.quant.spec import IDENTITY_BITS, QuantSpec
from qdit.scheme import Scheme

SHARED = ("target", "rounds", "tokens", "seed", "unit", "eliminate")
"""What the rules of weights, inputs and operands must agree on: they are searched under one objective."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Hessian(Newer, Checked):
    """The range of least weighted output error among the multiples `alpha` … `beta` of the min-max range, and itself.

    If candidates are equal, the min-max range stays. Called on rows alone, it gives the range where the search starts.

    Args:
        target: the loss whose gradients weigh the errors of outputs.
        candidates: number of steps from `alpha` to `beta`, both of which are tried; the release leaves out the last.
        alpha, beta: the smallest and the largest multiple.
        rounds: of the alternating search: weights at the current grid of inputs, then inputs; queries, then keys;
            probabilities, then values. It stops when nothing changes any more.
        tokens: how many rows of a layer's input are used, chosen at random from all calibration points, or queries of
            an attention, of whole points; of `unit=block` whole points, 32 or one a group of timesteps at least. The
            default is the release's: 32 samples of 256.
        seed: of that choice and of the target.
        unit: whose output's error is weighed: the `layer`'s, or, for layers in blocks, the `block`'s (APQ-ViT,
            `qdit.hessian.blockwise`), which costs a forward pass of the block for each candidate.
        eliminate: of `unit=block`, the share of the output's smallest errors that does not count.
        scheme: `fixed` tries multiples of the range that `activation.grid` makes; `searched` also those of a symmetric
            range, so that each input has the better of both schemes (Q-HyViT, arXiv 2303.12557).

    Raises:
        UserError: a value is out of range.
    """

    target: Target
    candidates: Count = 100
    alpha: Positive = 0.01
    beta: float = 1.2
    rounds: Count = 3
    tokens: Count = 8192
    seed: int = 0
    unit: Literal["layer", "block"] = field(default="layer", metadata=NEWER)
    eliminate: Annotated[float, Ge(0), Lt(1)] = field(default=0.0, metadata=NEWER)
    scheme: Literal["fixed", "searched"] = field(default="fixed", metadata=NEWER)
    of_norms: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eliminate and self.unit == "layer":
            raise UserError(
                f"range hessian: eliminate={self.eliminate} leaves out errors of a block's output, and unit=layer "
                "weighs those of layers; use unit=block"
            )
        if self.alpha >= self.beta:
            raise UserError(
                f"range hessian: alpha={self.alpha} is the smallest multiple; beta={self.beta} must be above"
            )

    def __call__(self, rows: Float[Tensor, "rows n"], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """(lo, hi), both [rows, 1]: the minimum and the maximum, from which the search starts."""
        return MinMax()(rows, spec)

    def misfits(self, scheme: Scheme) -> list[str]:
        """What the rule cannot do of a scheme that has it, one sentence each."""
        if self.scheme == "fixed":
            return []
        owners = {"weight": scheme.weight, "attention": scheme.attention}
        found = [
            f"{group}.range.scheme=searched: schemes are searched for inputs; use {group}.range.scheme=fixed"
            for group, part in owners.items()
            if getattr(part, "range", None) is self
        ]
        grid = getattr(scheme.activation, "grid", None)
        if getattr(scheme.activation, "range", None) is self and grid != "asymmetric":
            found.append(
                f"activation.range.scheme=searched starts from a grid with a zero point among its codes, and "
                f"activation.grid={grid} is another; use activation.grid=asymmetric, or activation.range.scheme=fixed"
            )
        return found

    def factors(self) -> Float[Tensor, " candidates"]:
        """What the range is multiplied by; 1 comes first, so that it wins a tie."""
        steps = torch.arange(self.candidates + 1, dtype=torch.float64) / self.candidates
        grid = self.alpha + steps * (self.beta - self.alpha)
        return torch.cat([torch.ones(1), grid.float()])


def rules(scheme: Scheme) -> tuple[Hessian | None, Hessian | None, Hessian | None]:
    """The rules of weights, inputs and attention operands; None where it is another, or nothing is quantized."""
    found = (
        scheme.weight.range if scheme.weight_bits < IDENTITY_BITS else None,
        getattr(scheme.activation, "range", None) if scheme.activation_bits < IDENTITY_BITS else None,
        getattr(scheme.attention, "range", None) if scheme.operands else None,
    )
    weight, inputs, own = (rule if isinstance(rule, Hessian) else None for rule in found)
    return weight, inputs, own


def problems(scheme: Scheme) -> list[str]:
    """What the rules do not agree on, and inputs whose steps they cannot try, a sentence each."""
    if rules(scheme)[1] is not None and getattr(scheme.activation, "shifts", 0):
        return [
            "activation.range=hessian tries no steps of activation=channel_shift, which finds its own; use another "
            "range, or activation=tensor"
        ]
    if rules(scheme)[2] is not None and getattr(scheme.attention, "balance", False):
        return [
            "attention.range=hessian searches the ranges of queries and keys as they are, and attention.balance=true "
            "scales them; use another range, or attention.balance=false"
        ]
    named = zip(("weight", "activation", "attention"), rules(scheme), strict=True)
    present = [(group, rule) for group, rule in named if rule is not None]
    if misfits := [problem for _, rule in present for problem in rule.misfits(scheme)]:
        return list(dict.fromkeys(misfits))
    if len({type(rule) for _, rule in present}) > 1:
        kinds = " and ".join(f"{group}.range={type(rule).__name__.lower()}" for group, rule in present)
        return [f"ranges of weights, inputs and operands are searched under one objective, and {kinds} have others"]
    different = [key for key in SHARED if any(getattr(r, key) != getattr(present[0][1], key) for _, r in present)]
    if not different:
        return []
    values = " and ".join(f"{group}.range.{key}={getattr(rule, key)}" for key in different for group, rule in present)
    return [f"ranges of weights, inputs and operands are searched under one objective; {values} must be equal"]
