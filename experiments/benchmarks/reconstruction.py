"""What block reconstruction costs: time a unit against depth, and what two lanes save over running from the input.

    python experiments/benchmarks/reconstruction.py --depths 4 8 16

Processor seconds are reported, so that other work on the machine does not show. `data` is what brings inputs and
targets to the units: kept at the boundary by two lanes, or, `again`, made by running both networks from their input up
to the unit, for every unit (as PTQ4DiT's release does). Learning costs the same in both, and is left out of the factor.
Short runs of few iterations are enough: what is compared does not depend on what is learned.
"""

import argparse
import logging
import time
from collections.abc import Mapping

import torch
from depth import network
from torch import nn

from qdit.activation import StaticActivation
from qdit.calibration import CalibrationData
from qdit.method import Method, quantize
from qdit.model.base import DiffusionModel
from qdit.quant.ranges import MinMax
from qdit.rounding import AdaRound
from qdit.rounding.reconstruction import session
from qdit.rounding.reconstruction.targets import Targets, Task
from qdit.scope import Scope
from qdit.weight import WeightGrid

ROLES = ["qkv", "attn_out", "ffn_up", "ffn_down"]


class Timed(Targets):
    """Targets that count the seconds in which units wait for their data."""

    seconds = 0.0

    def task(self, unit, layers) -> Task:
        start = time.process_time()
        task = super().task(unit, layers)
        Timed.seconds += time.process_time() - start
        return task

    def advance(self, segment, layers: Mapping[str, nn.Module]) -> None:
        start = time.process_time()
        super().advance(segment, layers)
        Timed.seconds += time.process_time() - start


class Again(Timed):
    """No lanes: each unit's data comes from the network's input."""

    def __init__(self, *about) -> None:
        super().__init__(*about)
        self.about, self.before = about, []

    def task(self, unit, layers) -> Task:
        fresh = Timed(*self.about)
        for segment, passed in self.before:
            fresh.advance(segment, passed)
        return fresh.task(unit, layers)

    def advance(self, segment, layers: Mapping[str, nn.Module]) -> None:
        self.before.append((segment, layers))


def recipe(iterations: int, batch_size: int) -> Method:
    return Method(
        scope=Scope(roles=ROLES),
        weight=WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
        activation=StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax()),
        rounding=AdaRound(iterations=iterations, batch_size=batch_size),
        weight_bits=4,
        activation_bits=8,
        calibration=None,
    )


def measure(targets: type[Targets], model: DiffusionModel, parts: Method, data: CalibrationData) -> tuple[float, float]:
    """Seconds of the whole reconstruction, and of bringing the data."""
    session.Targets, Timed.seconds = targets, 0.0  # pyright: ignore[reportAttributeAccessIssue]
    run = session.Session.run

    def timed(self):
        start = time.process_time()
        weights = run(self)
        spent.append(time.process_time() - start)
        return weights

    spent: list[float] = []
    session.Session.run = timed
    try:
        quantize(model, parts, lambda: data)  # pyright: ignore[reportArgumentType]
    finally:
        session.Session.run, session.Targets = run, Targets  # pyright: ignore[reportAttributeAccessIssue]
    return spent[0], Timed.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    logging.getLogger("qdit").setLevel(logging.ERROR)  # so few iterations help no unit, and every unit says so
    x = torch.randn(chosen.points, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    data = CalibrationData(x, torch.arange(chosen.points) * 7 % 1000, torch.arange(chosen.points) % 11, 8)
    short, long = (recipe(n, chosen.batch_size) for n in (1, chosen.iterations))
    measure(
        Timed, network("dit", 2, chosen.width, side=16, head=64), short, data
    )  # the first run of a process pays for its start
    each: list[float] = []
    for depth in chosen.depths:
        model = network("dit", depth, chosen.width, side=16, head=64)
        seconds, kept = measure(Timed, model, long, data)
        _, again = measure(Again, model, short, data)
        each.append(seconds / depth)
        print(
            f"depth {depth:2}: {seconds:6.2f} s, {1000 * seconds / depth:6.0f} ms a unit; data: "
            f"{1000 * kept / depth:5.0f} ms a unit kept, {1000 * again / depth:5.0f} ms again, {again / kept:.1f}x"
        )
    print(f"time a unit, largest over smallest: {max(each) / min(each):.2f}")


if __name__ == "__main__":
    main()
