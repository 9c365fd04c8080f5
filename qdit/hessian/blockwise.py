"""The search of ranges by the error of a block's output (APQ-ViT, arXiv 2303.14341, as its abstract and readers say).

The score of a candidate is taken where the block ends, not where the layer does:

    Σ g² Δy² [|Δy| ≥ τ],     Δy the change of the block's output, g² its importance (`qdit.hessian.importance`)

"Bottom elimination" drops the small errors, which cannot be avoided, so that large ones decide: τ is the `eliminate`
quantile of |Δy| of each candidate; what the paper takes could not be read. There is no closed form: each candidate
costs a forward pass of the block. All readers of an input are quantized while one of their grids is searched; all rows
of a weight have one multiple. Operands of attentions are searched by their products, as ever. Blocks of a joint
attention return image and text: without importances, each counts relative to its mean square (`calibration.streams`).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qdit.calibration.blocks import Segment, Walk
from qdit.calibration.streams import Part, Streams, parts_of, row_shares
from qdit.errors import UserError
from qdit.fit import Fit
from qdit.hessian.grids import book_of, candidates, groups_of, numbers_of, searched, set_numbers
from qdit.hessian.importance import Importance
from qdit.hessian.rule import Hessian, rules
from qdit.model.base import DiffusionModel, Site
from qdit.nn.linear import QuantLinear
from qdit.nn.replace import replaced
from qdit.quant.grid import Rounded


def block_sites(model: DiffusionModel) -> dict[str, Site]:
    """For each block's path what its output is like, as a site: rows and channels of its first layer of all tokens."""
    found: dict[str, Site] = {}
    for site in model.sites():
        if site.path is not None and site.path not in found and site.tokens > 1:
            found[site.path] = replace(site, name=site.path, out_features=site.in_features)
    return found


def kept_error(
    change: Float[Tensor, "*shape"], weights: Float[Tensor, "*shape"], eliminate: float
) -> Float[Tensor, ""]:
    """Σ w Δ² without the share of the smallest |Δ|; of equal ones at the border, the mean stays; float64.

    Infinite where a change is not finite, as of a candidate that overflows.

    >>> even, one = torch.full((4,), 0.6), torch.tensor([0, 0, 0, 1.15])
    >>> [round(kept_error(change, torch.ones(4), 0.5).item(), 4) for change in (even, one)]
    [0.72, 1.3225]
    """
    sizes, errors = change.abs().flatten(), (weights * change.square()).flatten()
    drop = int(eliminate * len(sizes))
    if not errors.isfinite().all():
        return torch.full((), torch.inf, dtype=torch.float64, device=errors.device)
    if not drop:
        return errors.sum(dtype=torch.float64)
    border = sizes.kthvalue(drop).values
    above, at = sizes > border, sizes == border
    left = len(sizes) - drop - above.sum()
    return errors[above].sum(dtype=torch.float64) + left * errors[at].mean(dtype=torch.float64)


def flat(parts: Sequence[Part]) -> Float[Tensor, "points values"]:
    """The tensors of a block side by side."""
    return torch.cat([part.flatten(1) for part in parts], 1)


def alike(walk: Walk, exact: Sequence[Part], points: Int[Tensor, " n"]) -> list[Part]:
    """The weights of a block's tensors without importances: one for each, and nothing for rows that are hidden."""
    shares = [row_shares(walk.model, walk.data, part.shape[1]) for part in exact]
    own = [None if share is None else share[points] for share in shares]
    if (roots := Streams.relative([x.cpu() for x in exact], own).roots) is None:
        return [torch.ones(1, 1, 1)]
    return [root.square() for root in roots]


def relative(importance: Importance, points: Int[Tensor, " n"], total: int) -> list[Part]:
    """Importances of a block's tensors for some of all points, relative to the mean of all."""
    means = [part.rows.mean().clamp(min=1e-30) for part in importance.parts]
    sizes = [part.rows.numel() * part.channels.numel() for part in importance.parts]
    overall = sum(mean * (size / sum(sizes)) for mean, size in zip(means, sizes, strict=True))
    found = []
    for part, mean in zip(importance.parts, means, strict=True):
        rows = part.rows.reshape(total, -1)[points] / mean
        channels = part.channels / part.channels.mean().clamp(min=1e-30)
        found.append(rows.unsqueeze(-1) * channels * (mean / overall))
    return found


class BlockSearch:
    """The search of one input and of the weights that read it.

    Args:
        fit: whose ranges; the numbers of the input's quantizer are set in place.
        walk: of full precision, at the segment.
        part: the segment, a block.
        readers: of the input.
        module: rounds the input, None if nothing with a range does.
        importance: of the block's outputs; None: errors count alike.
        points: that are used.

    Raises:
        UserError: an output of the block is not finite.
    """

    def __init__(
        self,
        fit: Fit,
        walk: Walk,
        part: Segment,
        readers: Sequence[Site],
        module: nn.Module | None,
        importance: Importance | None,
        points: Int[Tensor, " n"],
    ) -> None:
        assert part.block is not None
        self.fit, self.walk, self.block, self.readers = fit, walk, part.block, readers
        self.weight_rule, self.input_rule, _ = rules(fit.recipe)
        self.module = searched(module) if self.input_rule is not None else None
        self.batches = list(points.split(walk.data.batch_size))
        self.given = [walk.arguments(self.block, rows) for rows in self.batches]
        with torch.no_grad():
            exact = self.outputs({})
        if not all(x.isfinite().all() for x in exact):
            raise UserError(f"range hessian: the output of {self.block} is not finite; try dtype=float32")
        self.exact, device = flat(exact), exact[0].device
        weights = alike(walk, exact, points) if importance is None else relative(importance, points, len(walk.data.t))
        self.weights = flat([w.to(device).expand_as(x) for w, x in zip(weights, exact, strict=True)])
        cells = torch.zeros(len(points), dtype=torch.long)
        self.cells = groups_of(self.module, walk.data.t[points].to(device)) if self.module is not None else cells
        self.starts = {site.name: fit.grid(site) for site in readers if fit.rounds(site)}
        self.factors = {name: torch.ones(()) for name in self.starts}
        self.layers: dict[str, tuple[Tensor | None, nn.Module]] = {}
        self.tried: Float[Tensor, "candidates cells numbers"] | None = None

    def outputs(self, layers: dict[str, nn.Module]) -> list[Part]:
        """What the block returns for all points with `layers` in place, float32."""
        found = []
        with replaced(self.walk.model.denoiser, {**self.walk.passed, **layers}):
            for rows, (args, kwargs) in zip(self.batches, self.given, strict=True):
                output = self.walk.through(self.block, rows, args, kwargs)
                found.append([x.float() for x in parts_of(output, len(rows))])
        return [torch.cat(batches) for batches in zip(*found, strict=True)]

    def layer(self, site: Site) -> nn.Module:
        """A reader with its weight, if quantized, on the grid of its multiple; kept until the multiple changes."""
        factor, (known, kept) = self.factors.get(site.name), self.layers.get(site.name, (None, None))
        if kept is not None and known is factor:
            return kept
        full, rounded = self.fit.layer(site), None
        if factor is not None:
            start = self.starts[site.name]
            grid = start.scaled(factor.to(start.scale).expand(len(start.scale), 1))
            rounded = Rounded.of(self.fit.weight_of(site), grid, self.fit.weight_spec(site))
        made = QuantLinear(full, rounded, self.fit.quantizers.get(site.name)).eval()
        self.layers[site.name] = factor, made
        return made

    def losses(self, count: int, rule: Hessian) -> Float[Tensor, " cells"]:
        """The score of the readers as they are, for each group of timesteps."""
        layers = {site.name: self.layer(site) for site in self.readers}
        change = flat(self.outputs(layers)) - self.exact
        parts = [self.cells == cell for cell in range(count)]
        return torch.stack([kept_error(change[own], self.weights[own], rule.eliminate) for own in parts])

    @torch.no_grad()
    def run(self) -> dict[str, Tensor]:
        """What `qdit.hessian.linears.Alternation` returns."""
        rule = self.weight_rule or self.input_rule
        assert rule is not None
        for _ in range(rule.rounds):
            moved = self.search_weights(self.weight_rule) if self.weight_rule is not None else False
            moved |= self.search_input(self.input_rule) if self.input_rule is not None else False
            if not moved:
                break
        found: dict[str, Tensor] = {}
        if self.weight_rule is not None:
            sizes = {name: len(start.scale) for name, start in self.starts.items()}
            found |= {f"{name}.weight": self.factors[name].expand(size, 1).clone() for name, size in sizes.items()}
        if self.module is not None:
            found[f"{self.readers[0].name}.input"] = numbers_of(self.module)
        return found

    def search_weights(self, rule: Hessian) -> bool:
        """The best multiple of each weight, one after the other; whether one changed."""
        moved, count = False, int(self.cells.max()) + 1
        for name, before in list(self.factors.items()):
            scores, tried = [], torch.cat([before.view(1), rule.factors()])
            for factor in tried:
                self.factors[name] = factor
                scores.append(self.losses(count, rule).sum())
            self.factors[name] = tried[int(torch.stack(scores).argmin())]
            moved |= bool(self.factors[name] != before)
        return moved

    def search_input(self, rule: Hessian) -> bool:
        """The best numbers of the input for each group of timesteps; whether they changed."""
        if self.module is None:
            return False
        before = numbers_of(self.module)
        if self.tried is None:
            self.tried = candidates(book_of(self.module), before, rule)
        table, scores = torch.cat([before.unsqueeze(0), self.tried]), []
        for numbers in table:
            set_numbers(self.module, numbers)
            scores.append(self.losses(len(numbers), rule))
        cells = torch.arange(table.shape[1], device=table.device)
        best = table[torch.stack(scores).argmin(0).to(table.device), cells]
        set_numbers(self.module, best)
        return not torch.equal(best, before)
