"""Parts of recipes against those that they replace: rounding an operand, a call of the embedded model, a fit of it.

    python experiments/benchmarks/parts.py [--repeats 5] [--tables rounding calls fits]

The budget of a new part is 1.5 times what it replaces, when sampling. A repair replaces nothing, so that its fit is to
be read in milliseconds. Operands have the shapes of a block of DiT-XL/2 with 256 tokens, 4 samples. Times are of the
processor, on one thread; the ways take turns, and the fastest of each counts.
"""

import argparse
import logging
from collections.abc import Callable
from functools import partial
from time import process_time

import torch
from formats import fastest
from simulated import assembled, made
from tabulate import tabulate

from qdit.calibration import CalibrationData
from qdit.execution import tune_cpu
from qdit.method import quantize
from qdit.nn.basis import Shift
from qdit.nn.clock import Clock
from qdit.nn.clusters import ClusterQuantizer
from qdit.nn.quantizers import BookQuantizer, ChannelQuantizer, DynamicQuantizer, StaticQuantizer
from qdit.quant.affine import affine
from qdit.quant.books import Book, Log2, LogSqrt2, Renormalised, Uniform
from qdit.quant.regions import TwoRegion
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import ALL
from qdit.runs.setup import Setup

SMALL = "bits=w4a8 calibration=uniform calibration.num_samples=20 calibration.per_trajectory=5"
CALLS = {  # what is new, and what it replaces
    "activation=channel_shift": ("quantizer=rtn activation=channel_shift", "quantizer=rtn activation=tensor"),
    "attention=log2": ("quantizer=rtn attention=log2", "quantizer=rtn attention=log_sqrt2 attention/range=minmax"),
    "renormalise, unsigned": (
        "quantizer=rtn attention=uniform attention/range=minmax attention.renormalise=true",
        "quantizer=rtn attention=uniform attention/range=minmax",
    ),
    "renormalise, two regions": (
        "quantizer=rtn attention=multi_region attention.probabilities.renormalise=true",
        "quantizer=rtn attention=multi_region",
    ),
    "renormalise, dynamic": (
        "quantizer=rtn attention=dynamic attention.renormalise=true",
        "quantizer=rtn attention=dynamic",
    ),
    "attention.balance": (
        "quantizer=rtn attention=dynamic attention.balance=true",
        "quantizer=rtn attention=dynamic",
    ),
    "activation=clustered": ("quantizer=rtn activation=clustered", "quantizer=rtn activation=tensor"),
    "transform=shift": ("quantizer=rtn activation=tensor transform=shift", "quantizer=rtn activation=tensor"),
    "repair=bias": ("quantizer=rtn repair=bias", "quantizer=rtn"),
    "transform=learned": (
        "quantizer=rtn activation=tensor transform=learned transform.iterations=1",
        "quantizer=rtn activation=tensor transform=reparam",
    ),
    "rounding=boundaries": (
        "quantizer=rtn activation=tensor rounding=boundaries rounding.iterations=1",
        "quantizer=rtn activation=tensor",
    ),
}
LEARN = (  # Q-Diffusion's parts with ranges by a quick rule, so that what is measured is the learning
    "quantizer=rtn scope=all activation=tensor attention=uniform attention/range=minmax"
    " rounding=adaround rounding.iterations=20"
)
FITS = {  # words of a recipe that learns, and those of the same recipe without
    "rounding.drop": (f"{LEARN} rounding.drop=0.5", LEARN),
    "rounding.inner": (f"{LEARN} rounding.inner=0.8", LEARN),
    "rounding.scale_aware": (f"{LEARN} rounding.scale_aware=true", LEARN),
    "rounding.units=temporal": (f"{LEARN} rounding.units=temporal", LEARN),
    "repair=bias": ("quantizer=rtn repair=bias", "quantizer=rtn repair=none calibration=uniform"),
    "attention.balance": (
        "quantizer=rtn attention=uniform attention/range=minmax attention.balance=true",
        "quantizer=rtn attention=uniform attention/range=minmax",
    ),
}


def book(which: Book, *numbers: float, bits: int = 8) -> BookQuantizer:
    """A module that rounds probabilities."""
    spec = QuantSpec(bits=bits, granularity="tensor", grid="unsigned", dynamic=False)
    return BookQuantizer(spec, which, torch.tensor([[numbers]]), ALL, Clock())


def probabilities() -> tuple[torch.Tensor, dict[str, tuple[torch.nn.Module, torch.nn.Module]]]:
    """Softmax outputs, and pairs of modules that round them."""
    x = torch.randn(4, 16, 256, 256, generator=torch.Generator().manual_seed(0)).mul_(3).softmax(-1)
    two = TwoRegion(8)
    books = {
        "unsigned": (Uniform(0, 255), 1 / 255, 0.0),
        "two regions": (two, *two.numbers(4, "one_exact")),
        "log √2": (LogSqrt2(8), 1.0),
        "log 2": (Log2(8, "linear"),),
    }
    pairs = {
        f"renormalise, {name}": (book(Renormalised(own), *numbers), book(own, *numbers))
        for name, (own, *numbers) in books.items()
    }
    for rounding in ("linear", "log"):
        pairs[f"log2, {rounding} (for log √2)"] = book(Log2(8, rounding)), book(LogSqrt2(8), 1.0)
    return x, pairs


def inputs() -> tuple[torch.Tensor, dict[str, tuple[torch.nn.Module, torch.nn.Module]]]:
    """An input of layers, and pairs of modules that round it."""
    x = torch.randn(4, 256, 1152, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(bits=8, granularity="tensor", dynamic=False)
    grid = affine(x.amin().view(1, 1), x.amax().view(1, 1), spec)
    shifted = QuantSpec(bits=8, granularity="tensor", grid="channel_shift", shifts=3, dynamic=False)
    numbers = torch.tensor([[grid.scale.item() / 8, grid.zero_point.item()]])
    shifts = torch.randint(0, 4, (1, 1152), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    channels = ChannelQuantizer(shifted, (0, 255), numbers, shifts, ALL, Clock())
    tensor, own = StaticQuantizer(spec, grid), numbers.repeat(8, 1).unsqueeze(0)
    clustered = QuantSpec(bits=8, granularity="tensor", grid="clustered", clusters=8, dynamic=False)
    clusters = ClusterQuantizer(
        clustered, (0, 255), own, torch.arange(1152).view(1, -1).remainder(8).byte(), ALL, Clock()
    )
    group = DynamicQuantizer(QuantSpec(bits=8, granularity="group", group_size=128))
    return x, {
        "channel_shift (for tensor)": (channels, tensor),
        "clustered (for tensor)": (clusters, tensor),
        "clustered (for group)": (clusters, group),
        "shift (for tensor alone)": (torch.nn.Sequential(Shift(torch.ones(1152), torch.float32), tensor), tensor),
    }


def rounding(repeats: int) -> list[tuple[str, float, float]]:
    """Seconds of each new module, and of what it replaces."""
    rows = []
    for x, pairs in (probabilities(), inputs()):
        for name, both in pairs.items():
            rows.append((name, *taken([partial(module, x) for module in both], repeats)))
    return rows


def calls(repeats: int) -> list[tuple[str, float, float]]:
    """Seconds of a call of the embedded model, 16 samples, with each part and with what it replaces."""
    random = torch.Generator().manual_seed(0)
    x, t, y = torch.randn(16, 4, 8, 8, generator=random), torch.full((16,), 500), torch.zeros(16, dtype=torch.long)
    rows = []
    for name, both in CALLS.items():
        models = [made(f"{SMALL} {words}") for words in both]

        def call(parts, quantized) -> None:
            with quantized.installed(parts.model):
                parts.model.denoise(x, t, y)

        rows.append((name, *taken([partial(call, *model) for model in models], repeats)))
    return rows


def fits(repeats: int) -> list[tuple[str, float, float]]:
    """Seconds of a fit of the embedded model with each part and without, of the same calibration points."""
    rows = []
    for name, both in FITS.items():

        def fit(parts, data) -> None:
            with torch.enable_grad():
                quantize(parts.model, parts.recipe, lambda: data)

        rows.append((name, *taken([partial(fit, *collected(f"{SMALL} {words}")) for words in both], repeats)))
    return rows


def collected(words: str) -> tuple[Setup, CalibrationData]:
    """The parts of a config and its calibration points."""
    parts = assembled(words)
    return parts, parts.recipe.calibration.collect(parts.model, parts.sampler, parts.dataset, 0)


@torch.no_grad()
def taken(works: list[Callable[[], object]], repeats: int) -> tuple[float, float]:
    """Seconds of the new way and of the old one, after a first call of each that does not count."""
    named = dict(zip("no", works, strict=True))
    fastest(named, 1)
    found = fastest(named, repeats)
    return found["n"], found["o"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    tables = {"rounding": rounding, "calls": calls, "fits": fits}
    parser.add_argument("--tables", nargs="+", choices=tables, default=list(tables))
    args = parser.parse_args()
    torch.set_num_threads(1)
    tune_cpu()
    logging.getLogger("qdit").setLevel(logging.ERROR)  # few iterations leave many units at nearest, a warning each
    start = process_time()
    for name in args.tables:
        rows = tables[name](args.repeats)
        found = [(what, f"{1e3 * new:.1f}", f"{1e3 * old:.1f}", f"{new / old:.2f}") for what, new, old in rows]
        print(tabulate(found, headers=[name, "ms", "replaced, ms", "ratio"], tablefmt="github"), end="\n\n", flush=True)
    print(f"{process_time() - start:.0f} seconds of the processor")


if __name__ == "__main__":
    main()
