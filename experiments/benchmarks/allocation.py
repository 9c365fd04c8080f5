"""How long an allocation of bits takes: 112 sites, 4 bit-widths and 4 ranges, as of DiT-XL/2, by every allocator.

    python experiments/benchmarks/allocation.py [--sites 112] [--repeats 3]

Losses are drawn: log-normal over sites and ranges, fourfold a bit, with noise. Of several means the slowest counts; the
budget of time is 10 seconds for the programme. The last column is the total loss over the programme's.
"""

import argparse
from time import perf_counter

import numpy as np
from tabulate import tabulate

from qdit.model.base import Site
from qdit.policies import LayerSpec
from qdit.quant.spec import QuantSpec
from qdit.search.allocate import MILP, Allocator, DynamicProgramme, Greedy
from qdit.search.bit_budget import BitBudget, BitBytes, Losses, MeanBits
from qdit.search.bit_space import BitSpace
from qdit.search.space import Gene

WIDTHS, STEPS, WIDTH = (2, 4, 6, 8), (13, 12, 13, 12), 1152
SHAPES = ((1, 3), (1, 1), (1, 4), (4, 1))  # of q, k and v together, attention output, and feed-forward, in widths
ALLOCATORS = (MILP(), DynamicProgramme(), Greedy())


def problem(sites: int, seed: int) -> tuple[BitSpace, Losses]:
    """A space of the shapes of DiT-XL/2, and losses."""
    rng = np.random.default_rng(seed)
    layers = {b: LayerSpec(weight=QuantSpec(bits=b), activation=QuantSpec(bits=8)) for b in WIDTHS}
    genes = []
    for number in range(sites):
        wide, high = SHAPES[number % 4]
        genes.append(Gene((Site(f"site.{number}", "qkv", number // 4, wide * WIDTH, high * WIDTH, 256, 0),), WIDTHS))
    losses = []
    for _ in genes:
        size = rng.lognormal(0, 2)
        losses.append([{b: size * rng.lognormal(0, 0.5) * 4.0**-b for b in WIDTHS} for _ in STEPS])
    return BitSpace(tuple(genes), layers, STEPS), losses


def measure(budget: BitBudget, allocator: Allocator, sites: int, repeats: int) -> tuple[float, float]:
    """Seconds of the slowest repetition, and the mean total loss."""
    seconds, totals = [], []
    for seed in range(repeats):
        space, losses = problem(sites, seed)
        least, most = budget.bounds(space, range(sites))
        menu = budget.menu(space, losses, range(sites), least + 0.4 * (most - least))
        start = perf_counter()
        chosen = allocator.choose(menu)
        seconds.append(perf_counter() - start)
        assert menu.table.allows(tuple(chosen))
        totals.append(sum(errors[option] for errors, option in zip(menu.errors, chosen, strict=True)))
    return max(seconds), float(np.mean(totals))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=112)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for label, budget in (("mean bits", MeanBits()), ("bytes", BitBytes())):
        found = [measure(budget, allocator, args.sites, args.repeats) for allocator in ALLOCATORS]
        for allocator, (seconds, total) in zip(ALLOCATORS, found, strict=True):
            rows.append([label, type(allocator).__name__, f"{seconds:.2f}", f"{total / found[0][1]:.4f}"])
    print(f"{args.sites} sites, {len(WIDTHS)} bit-widths, {len(STEPS)} ranges")
    print(tabulate(rows, ["budget", "allocator", "seconds", "loss"], "github"))


if __name__ == "__main__":
    main()
