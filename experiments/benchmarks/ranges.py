"""What a percentile-MSE range costs: qdit against the plain loops, on an activation of DiT-XL/2.

    python experiments/benchmarks/ranges.py [--samples 100]       # 100 samples × 256 tokens × 1152 channels, 118 MiB

`channels` finds a range for each channel, against a loop over channels and candidates with `torch.quantile`, as in
PTQ4DiT's release. `tensor` finds one range for the whole, against the release's way beyond 16 M values: numpy's
percentile, and each candidate's error in whole-tensor operations. Both sides run in turn, in one process, with
as many threads; seconds are of this machine, the ratio is what counts. `excess error` is of our range over the loop's;
torch interpolates in float32, which can move a range by 1e-4.
"""

import argparse
from time import perf_counter

import numpy as np
import torch
from tabulate import tabulate

from qdit.quant.affine import affine
from qdit.quant.ranges import PercentileMSE, rounding_error
from qdit.quant.spec import QuantSpec

SPEC = QuantSpec(bits=8, granularity="tensor", grid="asymmetric_free", dynamic=False)
RULE = PercentileMSE()
GOAL = 10


def torch_quantile(row: torch.Tensor, share: float) -> float:
    return torch.quantile(row, share).item()


def numpy_quantile(row: torch.Tensor, share: float) -> float:
    return float(np.percentile(row.numpy(), 100 * share))


def plain(rows: torch.Tensor, quantile) -> tuple[torch.Tensor, torch.Tensor]:
    """Row by row, candidate by candidate."""
    found = []
    for row in rows:
        candidates = []
        for share in RULE.shares:
            ends = (torch.tensor([[quantile(row, p)]]) for p in (1 - share, share))
            lo, hi = ends
            rounded = affine(lo, hi, SPEC).round(row[None])
            candidates.append((((row - rounded) ** 2).mean().item(), lo, hi))
        found.append(min(candidates, key=lambda candidate: candidate[0])[1:])
    lo, hi = (torch.cat(ends) for ends in zip(*found, strict=True))
    return lo, hi


def compare(name: str, rows: torch.Tensor, quantile) -> list[str]:
    """A row of the table: seconds of both, the ratio, and how much larger our ranges' error is, where it is."""
    RULE(rows[:1, :1000], SPEC)  # the first call of an operation loads it
    start = perf_counter()
    ours = RULE(rows, SPEC)
    seconds = perf_counter() - start
    start = perf_counter()
    loop = plain(rows, quantile)
    naive = perf_counter() - start
    errors = [rounding_error(rows, affine(*ends, SPEC), RULE.power) for ends in (ours, loop)]
    worse = (errors[0] / errors[1] - 1).max().item()
    return [name, f"{naive:.2f}", f"{seconds:.2f}", f"{naive / seconds:.1f}", f"{worse:.0e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(1152, 1, generator=generator).mul(4).exp()  # channels differ, as those of a transformer do
    channels = torch.randn(1152, args.samples * 256, generator=generator) * spread
    rows = [compare("channels", channels, torch_quantile), compare("tensor", channels.view(1, -1), numpy_quantile)]
    print(f"{args.samples} × 256 × 1152 values, {args.threads} threads; the goal for channels is {GOAL} times")
    print(tabulate(rows, ["ranges", "loops (s)", "qdit (s)", "times", "excess error"], "github"))


if __name__ == "__main__":
    main()
