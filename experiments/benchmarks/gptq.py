"""What GPTQ's column loop costs against a plain one; what a whole fit costs is in `depth.py`.

    python experiments/benchmarks/gptq.py      # a block of DiT-XL/2: widths 1152 and 4608

Processor seconds are reported, so that other work on the machine does not show. Only the loop is compared: the
Hessian's factor is the same for both, and rows are vectorised in both; what is gained comes from lazy blocks, in-place
updates and contiguous columns.
"""

import argparse
import time

import torch

from qdit.quant.ranges import MinMax
from qdit.rounding.gptq_columns import Curvature, round_columns
from qdit.weight import WeightGrid

XL = {"qkv": (3456, 1152), "attn_out": (1152, 1152), "ffn_up": (4608, 1152), "ffn_down": (1152, 4608)}


def plain(weight: torch.Tensor, curve: Curvature, spec, fit, block_size: int) -> torch.Tensor:
    """Column by column, every later column updated at once; rows vectorised."""
    weight, factor = weight.clone(), curve.factor.to(weight.dtype)
    for i in range(weight.shape[1]):
        if i % spec.group_size == 0:
            grid = fit(weight[:, i : i + spec.group_size].contiguous(), spec)
        rounded = grid.round(weight[:, i : i + 1])
        error = (weight[:, i : i + 1] - rounded) / factor[i, i]
        weight[:, i:] -= error * factor[i, i:]
        weight[:, i : i + 1] = rounded
    return weight


def columns(group_size: int) -> None:
    """Time the loops on one block of DiT-XL/2, with random factors of the right kind."""
    part = WeightGrid(granularity="group", group_size=group_size, grid="asymmetric", range=MinMax())
    spec, total = part.spec(4), torch.zeros(2)
    for role, (out, channels) in XL.items():
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(out, channels, generator=generator) / channels**0.5
        upper = torch.randn(channels, channels, generator=generator).triu(1) / channels**0.5 * 0.1
        factor = (upper + torch.eye(channels)).double()
        natural = torch.arange(channels)
        curve = Curvature(factor, natural, torch.zeros(channels, dtype=torch.bool), by_activity=False)
        seconds = []
        for method in (plain, round_columns):
            start = time.process_time()
            method(weight, curve, spec, part.fit, 128)
            seconds.append(time.process_time() - start)
        total += torch.tensor(seconds)
        gain = seconds[0] / seconds[1]
        print(f"{role:9} {out}x{channels}: plain {seconds[0]:7.2f} s, qdit {seconds[1]:5.2f} s, {gain:.1f}x")
    print(f"block: plain {total[0]:.2f} s, qdit {total[1]:.2f} s, {total[0] / total[1]:.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    columns(chosen.group_size)


if __name__ == "__main__":
    main()
