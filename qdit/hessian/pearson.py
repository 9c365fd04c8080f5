"""The range rule `pearson`: outputs that are like those of full precision, by correlation and by the order of scores.

Liu et al., post-training quantization for vision transformers (NeurIPS 2021, arXiv 2106.14156): of each layer one step
of weights and one of inputs are chosen in turn, for the greatest

    Γ(o, ô) = Σ (o - ō)(ô - ô̄) / (‖o - ō‖ ‖ô - ô̄‖),        o = X Wᵀ,  ô = X̂ Ŵᵀ

Pearson's correlation of all entries of the output; of queries and keys, whose product are scores A, for the greatest

    Γ(A, Â) - γ (L(Â) - L(A)),    L(Â) = mean over queries k, keys i < j of (θ - (Â_ki - Â_kj) sign(A_ki - A_kj))₊

so that the order of scores is kept. Correlation does not see a gain: an output twice as large is as good.

What differs from the paper: Γ is that of all calibration points together, not a mean of theirs, as all that it needs of
a weight then follows from two moments of the input; its L is a sum, which at 64 tokens is 1,140 a map in full precision
already (of pairs nearer than θ), and would bury Γ ≤ 1; so it is a mean here, with full precision's subtracted. Scores
of keys behind a prompt's end, which a mask hides, do not count. How many candidates there are is not said in the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from qdit.checked import Count, Positive
from qdit.hessian.products import Judge, Moving, Other, pieces
from qdit.hessian.rule import Hessian
from qdit.hessian.scores import Layer, Moments, of_candidates
from qdit.hessian.target import Target, Unweighted
from qdit.quant.grid import RowGrid
from qdit.scheme import Scheme

MOST_DISTANCES = 63  # between two keys whose scores are compared: of 64 keys, all pairs


@dataclass(frozen=True, kw_only=True, repr=False)
class Pearson(Hessian):
    """The range of the most similar output among the multiples `alpha` … `beta` of the min-max range, and itself.

    Args:
        target: errors of all outputs count alike.
        candidates, alpha, beta, rounds, tokens, seed: see `Hessian`; the paper says the others, but not the first and
            `tokens`.
        ranking: γ, what the order of scores weighs; 0 leaves it out.
        margin: θ, by how much scores, before they are divided by √d, should stay apart.

    Raises:
        UserError: a value is out of range.
    """

    target: Target = field(default_factory=Unweighted)
    candidates: Count = 50
    alpha: Positive = 0.5
    beta: float = 1.2
    rounds: Count = 20
    tokens: Count = 2048
    ranking: Annotated[float, Ge(0)] = 0.1
    margin: Positive = 0.2

    def misfits(self, scheme: Scheme) -> list[str]:
        """See `Hessian`."""
        if self.unit == "block":
            return ["range=pearson compares outputs of layers; use range.unit=layer"]
        found = super().misfits(scheme)
        if scheme.weight.range is not self or scheme.weight.granularity == "tensor":
            return found
        return [
            *found,
            f"weight.range=pearson compares whole outputs, and weight.granularity={scheme.weight.granularity} has "
            "steps of its own for parts of them; use weight=tensor, or weight/range=mse",
        ]


@dataclass(frozen=True)
class Order:
    """How the order of scores counts."""

    weight: float
    """γ."""
    margin: float
    """θ, of scores as the network has them before their division by `root`."""
    root: float
    """√d."""
    flipped: bool
    """Whether products are [keys, queries]: keys move."""

    def excess(
        self, scores: Float[Tensor, "*many rows columns"], rounded: Tensor, counted: Tensor | None = None
    ) -> tuple[Tensor, Tensor | int]:
        """(L(Â) - L(A) as a sum over queries and pairs of keys [*many], how many pairs); `counted`: see `Other`."""
        both = (scores.mT, rounded.mT) if self.flipped else (scores, rounded)
        keys = None if counted is None else counted.mT if self.flipped else counted
        (after, pairs), (before, _) = (ranking(both[0], part, self.margin / self.root, keys) for part in both[::-1])
        if isinstance(pairs, Tensor):
            pairs = pairs.sum(-1) * (both[0].shape[-2] // pairs.shape[-1])
        else:
            pairs = pairs * both[0].shape[-2]
        return self.root * (after - before).sum(-1, dtype=torch.float64), pairs


def judge_of(rule: Hessian, operand: str | None = None, width: int = 1) -> Judge | None:
    """How a rule judges candidates (None: by `errors`); of queries and keys by the order of scores, too.

    Args:
        rule: which one.
        operand: of an attention.
        width: its channels in a head.
    """
    if not isinstance(rule, Pearson):
        return None
    ordered = operand in ("q", "k") and rule.ranking > 0
    return partial(unlike, order=Order(rule.ranking, rule.margin, width**0.5, operand == "k") if ordered else None)


def correlation(sums: Float[Tensor, "6 *shape"]) -> Float[Tensor, "*shape"]:
    """Γ, of the number of pairs (o, ô) and the sums of o, o², ô, ô² and o ô; 0 where either is constant.

    >>> o = torch.tensor([1.0, 2, 3, 4])
    >>> made = torch.tensor([[1.5, 2, 2.5, 3], [1, 2, 3, 5]])
    >>> correlation(torch.stack([sums_of(o, row) for row in made], 1))
    tensor([1.0000, 0.9827])
    """
    n, one, one_squared, other, other_squared, both = sums
    spread = (n * one_squared - one.square()).clamp(min=0) * (n * other_squared - other.square()).clamp(min=0)
    return torch.where(spread > 0, (n * both - one * other) / spread.clamp(min=1e-300).sqrt(), 0.0).to(sums)


def sums_of(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> Float[Tensor, " 6"]:
    """What `correlation` needs of pairs."""
    parts = [torch.ones_like(one), one, one.square(), other, other.square(), one * other]
    return torch.stack([part.sum() for part in parts])


def ranking(
    scores: Float[Tensor, "*many keys"],
    rounded: Float[Tensor, "*many keys"],
    margin: float,
    counted: Float[Tensor, "*#many keys"] | None = None,
) -> tuple[Float[Tensor, "*many"], Tensor | int]:
    """(L of each query as a sum over pairs of keys, how many pairs); `counted` has 0 for keys that are left out.

    Of more than 64 keys, pairs at some distances are compared, spread evenly over all distances.

    >>> A = torch.tensor([3, 1, 2, 2.1])
    >>> [round(ranking(A, torch.tensor(other), 0.2)[0].item(), 6) for other in ([3, 1, 2, 2.1], [2.0, 2, 2, 2])]
    [0.1, 1.2]
    """
    keys = scores.shape[-1]
    distances = range(1, keys, max(1, (keys - 1) // MOST_DISTANCES))
    total, pairs = torch.zeros_like(scores[..., 0] + rounded[..., 0]), 0
    both: Tensor | None = None
    for distance in distances:
        sign = (scores[..., :-distance] - scores[..., distance:]).sign()
        apart = (rounded[..., :-distance] - rounded[..., distance:]) * sign
        lost = (margin - apart).clamp(min=0)
        if counted is not None:
            both = counted[..., :-distance] * counted[..., distance:]
            lost = lost * both
        total += lost.sum(-1)
        pairs = pairs + (keys - distance if both is None else both.sum(-1))
    return total, pairs


def unlike(
    moving: Moving,
    others: Sequence[Other],
    tried: Float[Tensor, "candidates cells numbers"],
    order: Order | None = None,
) -> Float[Tensor, "candidates cells"]:
    """1 - Γ of each candidate, with γ (L(Â) - L(A)) added where the order counts; see `products.Judge`.

    Outputs of several products are one output.
    """
    sums = torch.zeros(6, *tried.shape[:2], dtype=torch.float64, device=tried.device)
    losses = torch.zeros(2, *tried.shape[:2], dtype=torch.float64, device=tried.device)  # L's excess, and pairs
    for piece in pieces(moving, others, tried):
        exact = [_counted(piece.moving.values @ (other.rounded + other.change), other) for other in piece.others]
        count = sum(_entries(o, other) for o, other in zip(exact, piece.others, strict=True))
        own = torch.stack([torch.stack([o, o.square()]).sum((-1, -2), dtype=torch.float64) for o in exact]).sum(0)
        known = torch.cat([(torch.zeros_like(own[0]) + count).unsqueeze(0), own]) @ piece.member
        sums[:3] += known.unsqueeze(1)
        for some in piece.some:
            moved = piece.moving.rounded(tried[some])
            for other, o in zip(piece.others, exact, strict=True):
                made = (moved.flatten(1, 2) @ other.rounded).unflatten(1, moved.shape[1:3])
                keys = None if other.counted is None else other.counted.unsqueeze(1)
                made, o = made if keys is None else made * keys, o.unsqueeze(1)
                found = [part.sum((-1, -2), dtype=torch.float64).T for part in (made, made.square(), made * o)]
                sums[3:, some] += torch.stack(found) @ piece.member
                if order is not None:
                    lost, pairs = order.excess(o, made, keys)
                    losses[:, some] += torch.stack([lost.T, (torch.zeros_like(lost) + pairs).T]) @ piece.member
    lost = losses[0] / losses[1].clamp(min=1)
    return 1 - correlation(sums) + (order.weight * lost if order is not None else 0.0)


def _counted(products: Float[Tensor, "items rows columns"], other: Other) -> Float[Tensor, "items rows columns"]:
    """The products, 0 where they do not count."""
    return products if other.counted is None else products * other.counted


def _entries(products: Float[Tensor, "items rows columns"], other: Other) -> Float[Tensor, " items"] | int:
    """How many entries of each item's product count."""
    if other.counted is None:
        return products[0].numel()
    return other.counted.expand_as(products).sum((-1, -2), dtype=torch.float64)


def alike_weights(
    layer: Layer,
    known: Moments,
    inputs: tuple[Float[Tensor, "n channels"], Float[Tensor, "n channels"]],
    start: RowGrid,
    tried: Float[Tensor, "candidates 1"],
) -> Float[Tensor, "candidates 1"]:
    """The candidates of a weight with one step, the most similar output first.

    Args:
        layer: of which weight.
        known: moments of its input, unweighted.
        inputs: the input, and what it is rounded to.
        start: the grid that is multiplied.
        tried: the candidates.
    """
    exact, rounded = (part.sum(0, dtype=torch.float64) for part in inputs)
    weight = layer.weight
    mixed = (weight @ known.second - known.slope).double()  # Σ o x̂ of each output
    outputs = inputs[0] @ weight.T
    fixed = [outputs.numel(), (weight.double() @ exact).sum(), outputs.square().sum(dtype=torch.float64)]
    found = []
    for factor in tried:
        own = of_candidates(start, factor.unsqueeze(0)).round(weight.view(len(start.scale), -1)).view_as(weight)
        square = ((own @ known.second) * own).sum(dtype=torch.float64)
        sums = [*fixed, (own.double() @ rounded).sum(), square, (own.double() * mixed).sum()]
        found.append(
            correlation(
                torch.stack([torch.as_tensor(part, dtype=torch.float64, device=weight.device) for part in sums])
            )
        )
    order = torch.stack(found).argsort(descending=True, stable=True)
    return tried[order]
