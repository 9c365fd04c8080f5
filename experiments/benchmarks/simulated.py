"""Simulated quantization against full precision: the time of the same sampling, in one process.

    python experiments/benchmarks/simulated.py [--batch 32] [--repeats 5]

The budget is 1.5 times for W8A8 with dynamic per-token inputs. Runs alternate and the fastest of each counts: machines
are noisy, so only the ratio means anything.
"""

import argparse
from time import perf_counter

import torch
from hydra import compose, initialize_config_dir
from tabulate import tabulate

from qdit.cli import CONF
from qdit.config import resolved
from qdit.parts import assemble
from qdit.quantize import quantize

SETTINGS = ("bits=w8a8", "bits=w4a4", "bits=w4a4 weight=group activation=group")


def seconds(parts, labels, quantized=None) -> float:
    start = perf_counter()
    if quantized is None:
        parts.sampler.sample(parts.model, list(range(len(labels))), labels, 0)
    else:
        with quantized.installed(parts.model):
            parts.sampler.sample(parts.model, list(range(len(labels))), labels, 0)
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        words = [*setting.split(), "quantizer=rtn", "calibration=none", "eval=none", "sampler.steps=5"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            parts = assemble(resolved(compose("config", words)))
        quantized = quantize(parts.model, parts.recipe, lambda: None)
        labels = parts.dataset.labels(list(range(args.batch)), 0)
        seconds(parts, labels), seconds(parts, labels, quantized)
        times = [(seconds(parts, labels), seconds(parts, labels, quantized)) for _ in range(args.repeats)]
        full, simulated = map(min, zip(*times, strict=True))
        rows.append([setting, f"{args.batch / full:.1f}", f"{args.batch / simulated:.1f}", f"{simulated / full:.2f}"])
    print(f"images of 5 steps a second, batch {args.batch}, {torch.get_num_threads()} threads")
    print(tabulate(rows, ["setting", "full precision", "simulated", "time ratio"], "github"))


if __name__ == "__main__":
    main()
