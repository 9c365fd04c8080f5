"""The loop that reconstructs a unit: rounding and activation step sizes learn to give the full-precision output.

BRECQ (Li et al., arXiv 2102.05426) as PTQ4DiT's release (arXiv 2405.16005) runs it. The loss is

    256 · mean (y - ŷ)²  +  round_weight · Σ 1 - |2 h - 1|^β

with the mean over points, tokens and channels; the second term is AdaRound's regularizer (`soft`). The released code
sums over tokens, so that at 512 pixels the error counts four times as much as at 256 against the same regularizer. The
factor 256 is DiT's number of tokens at 256 pixels, where both losses are equal. Data is shuffled over the whole
calibration set; the release visits one shard after the other.

With `inner`, the squared errors of the outputs of a block's layers, but of the last, are added with this weight
(EDA-DM, arXiv 2401.04585).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from qdit.calibration.replay import by_point
from qdit.checked import NEWER, Checked, Count, Newer, Samples, Whole
from qdit.nn.linear import QuantLinear
from qdit.nn.outputs import outputs_of
from qdit.quant.grid import Rounded
from qdit.rounding.reconstruction.soft import LearnedWeight, beta_at
from qdit.rounding.reconstruction.ste import LearnedStep
from qdit.rounding.reconstruction.targets import Task

StepUnit = Literal["relative", "absolute"]
Units = Literal["blocks", "temporal"]
Rate = Annotated[float, Ge(0)]
Exponent = Annotated[float, Ge(1)]  # below 1 the regularizer's slope has no bound
TOKENS = 256  # the number of tokens at which the loss equals the release's
LOW_BITS = 4  # bits of weights below which more iterations are needed


@dataclass(frozen=True, kw_only=True, repr=False)
class Learning(Newer, Checked):
    """How a unit learns.

    The defaults are a short schedule for small networks: 500 steps, each a hundred times as long as the paper's. The
    paper's 20,000 short ones are `rounding=adaround_paper`.

    Args:
        iterations: optimizer steps per unit; 0 rounds to nearest.
        low_bits: factor on the iterations of a unit with a weight of 2 or 3 bits, which 500 leave underfitted.
        batch_size: calibration points per iteration.
        rate: Adam's learning rate of the rounding; over all steps, α moves by about `rate` times `iterations` at most.
        step_rate: Adam's learning rate of the step sizes (scales) of static activation quantizers, in units of
            `step_unit`; it falls to 0 as a cosine. Quantizers with several numbers each, of groups of timesteps, heads,
            two regions or formats with levels, learn none.
        step_unit: `relative`: the step size as calibrated, over 2^bits, so that the far end of the range moves by about
            `step_rate` steps per iteration: finer grids, whose ranges are nearly right, move less. `absolute`: 1, as in
            the released code, where the size of the inputs decides how far a step size gets.
        round_weight: weight of the regularizer (the penalty on undecided rounding) against the squared error of the
            output, as released.
        warmup: share of the iterations without the regularizer.
        beta_start, beta_end: the regularizer's exponent, falling linearly after the warm-up.
        drop: probability with which each element of a rounded activation passes unrounded while a unit learns (QDrop:
            0.5). Left out: QDrop also mixes a unit's inputs with full precision's.
        inner: weight of the errors of a block's layers beside that of its output (EDA-DM: 0.8).
        units: `blocks`, each with its embedders and modulation, or these apart and first, together, as a `temporal`
            unit (TFMQ-DM; `qdit.rounding.reconstruction.temporal`), whose errors are weighed alike under any weighting,
            and whose weights, those of all modulations, learn at once: 36 bytes each.
        scale_aware: whether what learns counts in units of the weight (FP4DiT): `rate` then moves weights whose
            neighbouring values lie close together further.

    Raises:
        UserError: a value is out of range.
    """

    iterations: Whole = 500
    low_bits: Count = 4
    batch_size: Samples = 8
    rate: Rate = 0.1
    step_rate: Rate = 1e-4
    step_unit: StepUnit = "absolute"
    round_weight: Rate = 0.01
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.2
    beta_start: Exponent = 20.0
    beta_end: Exponent = 2.0
    drop: Annotated[float, Ge(0), Lt(1)] = field(default=0.0, metadata=NEWER)
    inner: Rate = field(default=0.0, metadata=NEWER)
    units: Units = field(default="blocks", metadata=NEWER)
    scale_aware: bool = field(default=False, metadata=NEWER)

    def scaled(self, bits: Iterable[int]) -> "Learning":
        """How a unit learns whose weights have these bits.

        >>> Learning(iterations=500, low_bits=4).scaled([8, 3]).iterations
        2000
        """
        low = min(bits, default=LOW_BITS) < LOW_BITS
        return replace(self, iterations=self.low_bits * self.iterations) if low else self


@dataclass(frozen=True)
class Learner:
    """The parameters that learn in a unit; the caller installs the unit's layers."""

    layers: Mapping[str, QuantLinear]
    """Those whose weight is rounded, by site; their weight is set before every call of the unit."""
    weights: Mapping[str, LearnedWeight]
    """For each of the layers."""
    steps: Mapping[str, LearnedStep]
    """By the path of the quantizer."""

    def soften(self) -> list[Tensor]:
        """Give the layers their soft weights, and return these in the order of `weights`."""
        for name, weight in self.weights.items():
            self.layers[name].weight = weight.soft()
        return [self.layers[name].weight for name in self.weights]

    def result(self) -> tuple[dict[str, Rounded], dict[str, Tensor]]:
        """The rounded weights, and what the activation quantizers learned, as they stand."""
        steps = {path: step.numbers.detach().clone() for path, step in self.steps.items()}
        return {name: weight.hard() for name, weight in self.weights.items()}, steps

    def harden(self) -> None:
        """Give the layers their dequantized weights, rounded up or down."""
        for name, weight in self.weights.items():
            self.layers[name].weight = weight.hard().weight.to(weight.dtype)


def distance(output: Tensor, target: Tensor, importance: Tensor | None) -> Tensor:
    """256 times the mean square of output - target, with entries weighted by `importance` (broadcast)."""
    square = (output.float() - target.to(output.device).float()).square()
    return TOKENS * (square if importance is None else square * importance.to(output.device)).mean()


def shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of row numbers without end: all rows in a new order, again and again.

    >>> batches = shuffled(4, 2, torch.Generator().manual_seed(0))
    >>> torch.cat([next(batches), next(batches)]).sort().values
    tensor([0, 1, 2, 3])
    """
    left = torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:size]
        left = left[size:]


@torch.no_grad()
def error(task: Task, batch_size: int) -> float:
    """The loss of a unit, as it is installed, over all calibration points; without the regularizer."""
    total = 0.0
    for rows in torch.arange(len(task.target)).split(batch_size):
        some = None if task.importance is None else task.importance[rows]
        total += float(distance(task.predict(rows), task.target[rows], some)) * len(rows)
    return total / len(task.target)


def reconstruct(
    task: Task,
    learner: Learner,
    how: Learning,
    generator: torch.Generator,
    tick: Callable[[], object] = lambda: None,
) -> None:
    """Learn; the parameters of the network get no gradient.

    Args:
        task: inputs and targets of the unit.
        learner: what learns; it must be installed where `task` calls it.
        how: the hyperparameters.
        generator: shuffles the points.
        tick: called after each iteration.
    """
    softs, steps = list(learner.weights.values()), list(learner.steps.values())
    values = [step.value for step in steps]
    optimizers = [_adam([soft.alpha for soft in softs], how.rate), _adam(values, how.step_rate)]
    batches = shuffled(len(task.target), min(how.batch_size, len(task.target)), generator)
    for n in range(1, how.iterations + 1):
        rows = next(batches)
        with torch.enable_grad():
            leaves = learner.soften()
            some = None if task.importance is None else task.importance[rows]
            with outputs_of({name: learner.layers[name] for name in task.inner}) as inside:
                loss = distance(task.predict(rows), task.target[rows], some)
            for name, output in inside.items():
                share = task.shares[name][rows] if name in task.shares else None
                loss = loss + how.inner * distance(by_point(output, len(rows)), task.inner[name][rows], share)
            gradients = torch.autograd.grad(loss, [*leaves, *values], allow_unused=True)
        beta = beta_at(n, how.iterations, how.warmup, how.beta_start, how.beta_end)
        weight = how.round_weight if n >= how.warmup * how.iterations else 0.0
        for soft, gradient, leaf in zip(softs, gradients, leaves, strict=False):
            soft.learn(torch.zeros_like(leaf) if gradient is None else gradient, weight, beta)
        for value, gradient in zip(values, gradients[len(softs) :], strict=True):
            value.grad = gradient
        _descend(optimizers, how, n - 1)
        for step in steps:
            step.bound()
        tick()


def _adam(parameters: Sequence[Tensor], rate: float) -> torch.optim.Optimizer | None:
    return torch.optim.Adam(parameters, lr=rate, fused=True) if parameters else None


def _descend(optimizers: Sequence[torch.optim.Optimizer | None], how: Learning, done: int) -> None:
    """One step of both optimizers, the second with its share of the cosine."""
    rounding, stepping = optimizers
    if rounding is not None:
        rounding.step()
    if stepping is not None:
        stepping.param_groups[0]["lr"] = how.step_rate * 0.5 * (1 + math.cos(math.pi * done / how.iterations))
        stepping.step()
