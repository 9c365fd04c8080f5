"""Quantized sampling against full precision, simulated and on integers, and methods against round to nearest.

    python experiments/benchmarks/simulated.py [--batch 32] [--repeats 5] [--tables precision methods]

The budgets: 1.5 times full precision for W8A8 with dynamic per-token inputs, and 2 times simulated round to nearest for
a whole method. Runs of one process alternate and the fastest of each counts: machines are noisy, so only ratios mean
anything. Ranges are taken by a quick rule; how they were found costs nothing when sampling.
"""

import argparse
from contextlib import nullcontext
from time import perf_counter

import torch
from hydra import compose, initialize_config_dir
from tabulate import tabulate

from qdit.assets import CONF
from qdit.config import resolved
from qdit.execution import attending, executing, has_int8, tune_cpu
from qdit.method import quantize
from qdit.runs.setup import Setup, assemble

SETTINGS = ("bits=w8a8", "bits=w4a4", "bits=w4a4 weight=group activation=group")
SMALL = "calibration.num_samples=20 calibration.per_trajectory=5"
METHODS = {
    "rtn": "quantizer=rtn",
    "vidit_q": f"quantizer=vidit_q {SMALL}",
    "viditq_v1": f"quantizer=viditq_v1 {SMALL}",
    "tq_dit": f"quantizer=tq_dit {SMALL} activation.time.groups=5 "
    "weight/range=minmax activation/range=minmax attention/range=minmax",
}
STEPS = "sampler.steps=5"
CPU = torch.device("cpu")


def assembled(words: str) -> Setup:
    """The parts of a config."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return assemble(resolved(compose("config", [*words.split(), STEPS, "eval=none"])))


def made(words: str):
    """The parts of a config, and its quantized model."""
    parts = assembled(words)
    recipe = parts.recipe
    collect = lambda: recipe.calibration.collect(parts.model, parts.sampler, parts.dataset, 0)  # noqa: E731
    return parts, quantize(parts.model, recipe, collect)


def seconds(parts, labels, quantized=None, execution="simulated") -> float:
    installed = nullcontext() if quantized is None else quantized.installed(parts.model)
    keys = max(attention.keys for attention in parts.model.attentions())
    with installed, executing(execution, CPU), attending(CPU, keys):
        start = perf_counter()
        parts.sampler.sample(parts.model, list(range(len(labels))), labels, 0)
        return perf_counter() - start


def precision(batch: int, repeats: int) -> str:
    """Round to nearest against full precision."""
    rows = []
    for setting in SETTINGS:
        parts, quantized = made(f"{setting} quantizer=rtn calibration=none")
        labels = parts.dataset.labels(list(range(batch)), 0)
        ways = [(None, "simulated"), (quantized, "simulated")] + [(quantized, "int8")] * has_int8(CPU)
        times = [[seconds(parts, labels, *way) for way in ways] for _ in range(repeats + 1)][1:]
        fastest = [min(taken) for taken in zip(*times, strict=True)]
        rates = [f"{batch / taken:.1f}" for taken in fastest]
        rows.append([setting, *rates, *(f"{taken / fastest[0]:.2f}" for taken in fastest[1:])])
    names = ["setting", "full precision", "simulated", "int8"][: len(rates) + 1]
    return tabulate(rows, [*names, *(f"time ratio {name}" for name in names[2:])], "github")


def methods(batch: int, repeats: int, bits: str = "w8a8") -> str:
    """Whole methods against round to nearest."""
    models = {name: made(f"{words} bits={bits}") for name, words in METHODS.items()}
    labels = next(iter(models.values()))[0].dataset.labels(list(range(batch)), 0)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, (parts, quantized) in models.items():
            times[name].append(seconds(parts, labels, quantized))
    fastest = {name: min(taken[1:]) for name, taken in times.items()}
    rows = [
        [f"{name} {bits}", f"{batch / taken:.1f}", f"{taken / fastest['rtn']:.2f}"] for name, taken in fastest.items()
    ]
    return tabulate(rows, ["method", "simulated", "time ratio to rtn"], "github")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    tables = {"precision": precision, "methods": methods}
    parser.add_argument("--tables", nargs="+", choices=tables, default=list(tables))
    args = parser.parse_args()
    tune_cpu()
    print(f"images of 5 steps a second, batch {args.batch}, {torch.get_num_threads()} threads")
    for name in args.tables:
        print(tables[name](args.batch, args.repeats), end="\n\n")


if __name__ == "__main__":
    main()
