"""The fast Hadamard transform against the dense product, and what it adds to a simulated layer.

    python experiments/benchmarks/hadamard.py [--tokens 4096] [--repeats 5] [--device cpu]

DiT-XL's widths. The factor is dense over fast; runs alternate and the fastest of each counts. The last column is the
time of the transform over that of the layer behind it (1152 x 1152 or 4608 x 1152, in floating point).
"""

import argparse
from collections.abc import Callable
from time import perf_counter

import torch
from tabulate import tabulate

from qdit.quant.hadamard import hadamard

CASES = ((1152, None), (1152, 128), (4608, None), (4608, 128))


def seconds(run: Callable[[], torch.Tensor], device: str) -> float:
    start = perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    rows = []
    for channels, block in CASES:
        x = torch.randn(args.tokens, channels, device=args.device)
        dense = hadamard(torch.eye(channels, device=args.device), block)
        weight = torch.randn(1152, channels, device=args.device)
        runs = [lambda x=x, d=dense: x @ d, lambda x=x, b=block: hadamard(x, b), lambda x=x, w=weight: x @ w.T]
        error = (runs[0]() - runs[1]()).abs().max().item()
        times = [[seconds(run, args.device) for run in runs] for _ in range(args.repeats)]
        slow, fast, layer = map(min, zip(*times, strict=True))
        row = [channels, block or "all", f"{slow * 1e3:.1f}", f"{fast * 1e3:.1f}", f"{slow / fast:.1f}"]
        rows.append([*row, f"{fast / layer:.2f}", f"{error:.0e}"])
    print(f"{args.tokens} tokens, float32, {args.device}, {torch.get_num_threads()} threads")
    heads = ["channels", "block", "dense (ms)", "fast (ms)", "factor", "fast / layer", "difference"]
    print(tabulate(rows, heads, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
