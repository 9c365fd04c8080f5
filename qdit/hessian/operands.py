"""The search of an attention's operands: queries and keys of s = q kᵀ, probabilities and values of o = p v.

As in TQ-DiT's release each product is searched separately: in every round first the left operand, then the right one.
The release keeps v in full precision while p is searched; here each operand sees the other as quantized so far. The
score of errors in o weighs them with o's importance (`qdit.hessian.importance`): a_i of a query i and head times b_d
of a channel. Errors in s reach o through the softmax, whose derivative is ∂o_i / ∂s_ij = p_ij (v_j - o_i), so that the
importance of an entry of s is

    p_ij² a_i Σ_d b_d (v_jd - o_id)²

the diagonal of the Hessian with respect to s, given that with respect to o. It needs no storage for pairs of tokens.

Whole calibration points are used, spread evenly over the groups of timesteps, for one attention at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qdit.attention.static import StaticAttention
from qdit.calibration.blocks import Segment, Walk
from qdit.calibration.observers import watching_operands
from qdit.calibration.rows import ChosenRows
from qdit.errors import UserError
from qdit.fit import Fit
from qdit.hessian.grids import book_of, groups_of, heads_of, multiples, numbers_of, searched, step_of
from qdit.hessian.importance import Importance
from qdit.hessian.pearson import judge_of
from qdit.hessian.products import Judge, Moving, Other, best, in_turn, shortlist
from qdit.hessian.rule import Hessian
from qdit.model.base import OPERANDS, Attention
from qdit.nn.quantizers import BookQuantizer, StaticQuantizer
from qdit.quant.time_groups import Groups
from qdit.seeding import generator

Values = dict[str, Float[Tensor, "points heads tokens inner"]]
"""Of each operand, in full precision."""


def chosen_points(timesteps: Int[Tensor, " n"], groups: Groups, count: int, seed: int) -> Int[Tensor, " count"]:
    """Indices of the points (or their frames) that are used, in random order, from the groups of timesteps in turn."""
    order = torch.randperm(len(timesteps), generator=generator(seed, "hessian points", 0))
    return order[in_turn(groups.of(timesteps)[order], groups.count)[:count]]


def operands_of(walk: Walk, part: Segment, attention: Attention, items: Int[Tensor, " n"]) -> Values:
    """The operands of some points, or frames of points, while the walk is at the block of the attention; float32.

    Raises:
        UserError: they are not finite.
    """
    seen = {site: ChosenRows(items) for site in attention.sites.values()}
    with watching_operands(walk.model, [attention], lambda site, x: seen[site].add(x)):
        walk.observe(part, {})
    return {operand: finite(seen[site].value(), site) for operand, site in attention.sites.items()}


def finite(rows: Float[Tensor, "n *shape"], name: str) -> Float[Tensor, "n *shape"]:
    """The rows themselves.

    Raises:
        UserError: they are not finite; the message calls them `name`.
    """
    if not rows.isfinite().all():
        raise UserError(f"range hessian: {name} is not finite; try dtype=float32")
    return rows


def output_weights(importance: Importance, items: Int[Tensor, " n"]) -> Float[Tensor, "n heads tokens inner"]:
    """The importance of the entries of p v."""
    channels = importance.channels / importance.channels.mean(-1, True).clamp(min=torch.finfo(torch.float32).tiny)
    return importance.rows[items].unsqueeze(-1) * channels.unsqueeze(1)


def score_weights(
    values: Values, weights: Float[Tensor, "n heads tokens inner"]
) -> Float[Tensor, "n heads tokens keys"]:
    """The importance of the entries of q kᵀ, given that of p v: see the module's formula."""
    probs, v = values["probs"], values["v"]
    mixed = probs @ v
    rows = weights.mean(-1, True)
    root = (weights.sum(2, True) / rows.sum(2, True).clamp(min=torch.finfo(torch.float32).tiny)).sqrt()
    return torch.cdist(mixed * root, v * root).square_().mul_(probs).mul_(probs).mul_(rows)


@dataclass
class Side:
    """An operand as the left one of its product: matrices [rows, inner] for each point and head."""

    values: Float[Tensor, "items rows inner"]
    module: StaticQuantizer | BookQuantizer | None
    """None if it is not quantized."""
    cells: Int[Tensor, " items"]
    tried: Float[Tensor, "candidates cells numbers"] | None
    """None if it is not searched; from the first time on, the best ones."""
    judge: Judge | None = None
    """Says how bad a candidate is; None: `errors`."""
    counted: Float[Tensor, "items #rows #columns"] | None = None
    """See `Other`."""
    numbers: Float[Tensor, "cells numbers"] = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = numbers_of(self.module) if self.module is not None else torch.empty(0)

    @property
    def moving(self) -> Moving:
        """As the operand whose grid is searched."""
        assert self.module is not None
        return Moving(self.values, book_of(self.module), self.cells)

    def other(self, weights: Float[Tensor, "items columns rows"], counted: Tensor | None = None) -> Other:
        """As the operand that stays fixed, on its current grid; `counted` of the moving one."""
        rounded = self.values if self.module is None else self.moving.rounded(self.numbers.unsqueeze(0))[:, 0]
        return Other(rounded.mT, (self.values - rounded).mT, weights, counted)

    def search(self, other: "Side", weights: Float[Tensor, "items rows columns"]) -> bool:
        """Search the numbers, given the other operand; whether they changed."""
        if self.tried is None:
            return False
        before, others = self.numbers, [other.other(weights, self.counted)]
        self.tried = shortlist(self.moving, others, self.tried, self.judge)
        self.numbers = best(self.moving, others, self.tried, self.judge)
        return not torch.equal(self.numbers, before)


def alternate(left: Side, right: Side, weights: Float[Tensor, "items rows columns"], rounds: int) -> None:
    """Search both operands of the product left rightᵀ in turn, until nothing changes any more."""
    for _ in range(rounds):
        left.search(right, weights)
        if not right.search(left, weights.mT):
            break


@dataclass(frozen=True)
class OperandSearch:
    """The search of one attention.

    Args:
        fit: whose quantizers.
        rule: of operands; weights and inputs may have other candidates, and another weight of the order of scores.
        attention: whose operands.
        importance: of its output.
        items: numbers of the calibration points, or of all their frames (or places), one point's after the other's.
        times: the timestep of each.
    """

    fit: Fit
    rule: Hessian
    attention: Attention
    importance: Importance
    items: Int[Tensor, " n"]
    times: Int[Tensor, " n"]

    def run(self, values: Values) -> dict[str, Float[Tensor, "cells numbers"]]:
        """The numbers of the operands that are quantized, by site, on the CPU; `values` is emptied."""
        outputs = output_weights(self.importance, self.items)
        outputs = (outputs / outputs.mean(dtype=torch.float64)).to(values["v"])
        scores = score_weights(values, outputs)
        found = self.product(values, "q", "k", scores / scores.mean(dtype=torch.float64).clamp(min=1e-30))
        return found | self.product(values, "probs", "v", outputs)

    def product(self, values: Values, left: str, right: str, weights: Tensor) -> dict[str, Tensor]:
        """Search the numbers of the two operands of a product, which sums over their inner dimension."""
        first, second = values.pop(left), values.pop(right)
        sides = {left: self.side(left, first), right: self.side(right, second.mT if right == "v" else second)}
        if left == "q" and (keys := self.attended()) is not None:
            keys = keys.to(first.device)
            sides["q"].counted, sides["k"].counted = keys.unsqueeze(1), keys.unsqueeze(2)
        alternate(sides[left], sides[right], weights.flatten(0, 1), self.rule.rounds)
        return {self.attention.sites[o]: side.numbers for o, side in sides.items() if side.tried is not None}

    def attended(self) -> Float[Tensor, "items keys"] | None:
        """1 for the keys of each item, a point and head, that are attended to, and 0 for others; None: all are."""
        points = self.items.cpu() // self.attention.copies
        mask = self.fit.model.attended(self.attention.sites["k"], self.fit.data.y[points])
        return None if mask is None else mask.float().repeat_interleave(self.attention.heads, 0)

    def side(self, operand: str, values: Float[Tensor, "points heads rows inner"]) -> Side:
        """An operand with its candidates."""
        module = searched(self.fit.attention.get(self.attention.sites[operand]))
        heads = torch.arange(values.shape[1], device=values.device)
        if module is None:
            return Side(values.flatten(0, 1).contiguous(), None, heads.repeat(len(values)), None)
        judge = judge_of(self.rule, operand, self.attention.head_dim)
        groups = groups_of(module, self.times.to(values.device))
        cells = groups.unsqueeze(1) * heads_of(module) + (heads if heads_of(module) > 1 else 0 * heads)
        table = self.table(operand, module, values, groups)
        return Side(values.flatten(0, 1).contiguous(), module, cells.flatten(), table, judge)

    def table(
        self, operand: str, module: StaticQuantizer | BookQuantizer, values: Tensor, groups: Tensor
    ) -> Float[Tensor, "candidates cells numbers"]:
        """The candidates: multiples of the step, or all ratios of two regions."""
        start, book = numbers_of(module), book_of(module)
        if (step := step_of(book)) is not None:
            return multiples(start, step, self.rule.factors())
        part = self.fit.recipe.attention
        assert operand == "probs", f"{book} is not searched"
        assert isinstance(part, StaticAttention)
        own = [values[groups == group].flatten() for group in range(len(start))]
        tried = [part.probabilities.candidates(some, module.spec) for some in own]
        return torch.cat([start.unsqueeze(0), torch.tensor(tried).transpose(0, 1).to(start)])


def searched_operands(fit: Fit, attention: Attention) -> dict[str, tuple[int, ...]]:
    """The sites of an attention whose numbers are searched, with the shapes of these."""
    found = {attention.sites[o]: searched(fit.attention.get(attention.sites[o])) for o in OPERANDS}
    return {site: tuple(numbers_of(module).shape) for site, module in found.items() if module is not None}


def inside(attentions: Sequence[Attention], part: Segment) -> list[Attention]:
    """The attentions of a segment's block."""
    return [a for a in attentions if part.block is not None and a.name.startswith(f"{part.block}.")]
