"""What a Hessian-guided search of one layer costs: all candidates at once against one after the other.

    python experiments/benchmarks/hessian.py [--tokens 8192] [--out 1152] [--channels 1152] [--loops 8] [--threads 1]

A layer of DiT-XL/2 with 320 calibration samples, of whose 81,920 rows `--tokens` are looked at (by default the rule's).
The loop rounds the weight, or the input, to one candidate, takes the product with all rows, and sums the weighted
squares. `--loops` of its candidates are timed and the time is scaled to all: each costs the same. One round of both
sides is searched; both ways run in this process, with as many threads. Processor seconds are reported, so that other
work on the machine does not show. `peak` is of the live bytes that our way adds to its inputs. `score ratio`: of the
found range to the best that the loop tried, for the worst output channel; none may be above 1.
"""

import argparse
from collections.abc import Callable
from time import process_time

import torch
from gptq import LiveBytes
from tabulate import tabulate

from qdit.hessian import Hessian, Probe
from qdit.hessian.grids import multiples
from qdit.hessian.linears import reader
from qdit.hessian.products import Moving, best, errors, reached, shortlist, summed
from qdit.hessian.scores import Layer, moments, search_weight
from qdit.quant.affine import Affine
from qdit.quant.books import Uniform
from qdit.quant.spec import QuantSpec
from qdit.weight import WeightGrid

RULE = Hessian(target=Probe())
FACTORS = RULE.factors()
GOAL = 5
BATCH = 4096  # rows in one product of the loop


def problem(tokens: int, out: int, channels: int) -> tuple[Layer, torch.Tensor]:
    """A layer with channels of different sizes and gradients that differ as a network's do."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(channels, generator=generator).mul(3).exp()
    inputs = torch.randn(tokens, channels, generator=generator) * spread
    weight = torch.randn(out, channels, generator=generator) / channels**0.5
    rows, width = (torch.randn(n, generator=generator).exp() for n in (tokens, out))
    return Layer(weight, rows, width), inputs


def weighted(change: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Σ a e² for each output channel."""
    return change.square_().mul_(rows.unsqueeze(1)).sum(0, dtype=torch.float64)


def loop_weight(layer: Layer, outputs, rounded, start: Affine, factors) -> torch.Tensor:
    """Errors [candidates, out], one candidate at a time."""
    errors = []
    for factor in factors:
        weight = start.scaled(factor.view(1, 1)).round(layer.weight)
        total = torch.zeros(len(weight), dtype=torch.float64)
        for z, x_hat, rows in zip(outputs.split(BATCH), rounded.split(BATCH), layer.rows.split(BATCH), strict=True):
            total += weighted(z - x_hat @ weight.T, rows)
        errors.append(total)
    return torch.stack(errors)


def loop_input(layer: Layer, outputs, inputs, weight, book: Uniform, table) -> torch.Tensor:
    """Errors [candidates], one candidate at a time."""
    found = []
    for scale, zero_point in table[:, 0]:
        total = torch.zeros(len(weight), dtype=torch.float64)
        for z, x, rows in zip(outputs.split(BATCH), inputs.split(BATCH), layer.rows.split(BATCH), strict=True):
            total += weighted(z - book(x, scale, zero_point) @ weight.T, rows)
        found.append(total @ layer.channels.double())
    return torch.stack(found)


def timed(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    start = process_time()
    found = run()
    return found, process_time() - start


def peak(run: Callable[[], torch.Tensor]) -> str:
    with LiveBytes() as live:
        run()
    return f"{live.peak / 2**20:.0f}"


def row(name: str, slow: float, fast: float, *others: str) -> list[str]:
    return [name, f"{slow:.1f}", f"{fast:.1f}", f"{slow / fast:.1f}", *others]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=RULE.tokens)
    parser.add_argument("--out", type=int, default=1152)
    parser.add_argument("--channels", type=int, default=1152)
    parser.add_argument("--bits", type=int, default=6)
    parser.add_argument("--loops", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    layer, inputs = problem(args.tokens, args.out, args.channels)
    spec = QuantSpec(bits=args.bits, granularity="row", grid="symmetric_full", dynamic=False)
    start = WeightGrid(granularity="row", grid="symmetric_full", range=RULE).fit(layer.weight, spec)
    half = 2 ** (args.bits - 1)
    numbers = torch.tensor([[float(inputs.abs().max()) / (half - 0.5), 0.0]])
    book = Uniform(-half, half - 1)
    moving = Moving(inputs.unsqueeze(1), book, torch.zeros(args.tokens, dtype=torch.long))
    rounded = moving.rounded(numbers.unsqueeze(0))[:, 0, 0]
    outputs = inputs @ layer.weight.T
    some = FACTORS[-60 :: 60 // args.loops]  # from half the range on
    share = len(FACTORS) / len(some)

    def weights() -> torch.Tensor:
        known, one = moments(layer, inputs, rounded), torch.ones_like(start.scale)
        return search_weight(layer, known, start, spec, FACTORS.unsqueeze(1), one)[0].unsqueeze(1)

    found, fast = timed(weights)
    tried, slow = timed(lambda: loop_weight(layer, outputs, rounded, start, some))
    # Of the candidates that the loop tried, none may be better than the one that was found.
    weight = start.scaled(found).round(layer.weight)
    own = weighted(outputs - rounded @ weight.T, layer.rows)
    worse = f"{float((own / tried.amin(0)).max()):.4f}"
    rows = [row("weights", slow * share, fast, peak(weights), worse)]

    def steps() -> torch.Tensor:
        other = reader(layer, weight)
        few = shortlist(moving, [summed(other, 0)], multiples(numbers, 0, FACTORS))
        return best(moving, [reached(other)], few)

    step, quick = timed(steps)
    table = multiples(numbers, 0, some)
    tried, late = timed(lambda: loop_input(layer, outputs, inputs, weight, book, table))
    own = errors(moving, [reader(layer, weight)], step.unsqueeze(0))
    rows += [row("inputs", late * share, quick, peak(steps), f"{float(own / tried.min()):.4f}")]
    rows += [row("both", (slow + late) * share, fast + quick, "", "")]
    print(f"{args.channels} to {args.out} channels, {args.tokens} rows, {len(FACTORS)} candidates, {args.bits} bits,")
    print(f"{args.threads} threads; inputs have {inputs.nbytes / 2**20:.0f} MiB; the goal for both is {GOAL} times")
    heads = ["side", "loop (s)", "qdit (s)", "times", "peak (MiB)", "score ratio"]
    print(tabulate(rows, heads, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
