"""Number formats against integers: rounding a large weight, and calling the embedded model with rounded inputs.

    python experiments/benchmarks/formats.py [--repeats 3]

The budgets: three times integers in groups of 16 for rounding a weight 1152 x 4608 to NVFP4, and twice full precision
for a call of the model with NVFP4 weights and inputs. Times are of the processor, on one thread; what is compared runs
in turn, and the fastest counts.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from time import process_time

import torch
from hydra import compose, initialize_config_dir
from tabulate import tabulate

from qdit.assets import CONF
from qdit.config import resolved
from qdit.execution import tune_cpu
from qdit.method import quantize
from qdit.model.dit import DiT
from qdit.quant.grid import Rounded
from qdit.quant.named import owned
from qdit.quant.ranges import MinMax
from qdit.runs.parts import build_recipe
from qdit.weight import WeightGrid

FORMATS = ("int4_g16", "int4_g64", "mxfp4", "nvfp4", "nvfp4_46", "lloyd4")
CPU = torch.device("cpu")


def fastest(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each, run in turn."""
    found = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for name, work in works.items():
            start = process_time()
            work()
            found[name] = min(found[name], process_time() - start)
    return found


def rounding(name: str, weight: torch.Tensor) -> None:
    """Find the grid of a weight, round it, and read it back."""
    part = WeightGrid(**owned({"granularity": "row", "grid": "asymmetric"}, name), range=MinMax())
    spec = part.spec(4)
    _ = Rounded.of(weight, part.fit(weight, spec), spec).weight


def calls(repeats: int) -> dict[str, float]:
    """Seconds of a call of the embedded model with 16 samples, in full precision and in each format."""
    model = DiT(name="emoji").load(CPU, torch.float32)
    made = {"full precision": None}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in FORMATS:
            recipe = build_recipe(resolved(compose("config", ["quantizer=rtn", f"bits={name}"])))
            assert recipe is not None
            made[name] = quantize(model, recipe, _no_data)
    random = torch.Generator().manual_seed(0)
    x, t, y = torch.randn(16, 4, 8, 8, generator=random), torch.full((16,), 500), torch.zeros(16, dtype=torch.long)

    @torch.no_grad()
    def call(quantized) -> None:
        with nullcontext() if quantized is None else quantized.installed(model):
            model.denoise(x, t, y)

    call(None)
    return fastest({name: lambda q=quantized: call(q) for name, quantized in made.items()}, repeats)


def _no_data():
    raise AssertionError("round to nearest needs no data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    tune_cpu()
    weight = torch.randn(1152, 4608, generator=torch.Generator().manual_seed(0))
    tables = {
        "a weight 1152 x 4608": fastest({n: lambda n=n: rounding(n, weight) for n in FORMATS}, repeats),
        "a call of the embedded model": calls(repeats),
    }
    for title, seconds in tables.items():
        base = next(iter(seconds.values()))
        rows = [(name, f"{1e3 * s:.0f}", f"{s / base:.2f}") for name, s in seconds.items()]
        print(tabulate(rows, headers=[title, "ms", "relative"], tablefmt="github"), end="\n\n")


if __name__ == "__main__":
    main()
