"""How fast activation steps should learn: the error of single blocks on points that neither calibrate nor are judged.

    python experiments/ptq4dit/steps.py --bits w4a4 w8a8 --blocks 2 7 --rates 0.02 0.06 0.2 --absolute 1e-4

Each block is reconstructed as PTQ4DiT does it, behind blocks in full precision, from calibration points of seed 1000;
what is printed is its output's square over the error's, in dB, on points of seed 2000. No result of the repository uses
these seeds. `nearest` learns nothing. A relative rate r (`rounding.step_unit=relative`) moves the far end of a range by
about r of its steps an iteration.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import log10
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import nn
from tqdm import tqdm

from qdit.assets import CONF
from qdit.calibration import CalibrationData
from qdit.calibration.blocks import Segment
from qdit.config import resolved
from qdit.fit import Fit
from qdit.nn.replace import replaced
from qdit.quant.grid import Rounded
from qdit.rounding import AdaRound
from qdit.rounding.reconstruction.loop import TOKENS, error
from qdit.rounding.reconstruction.session import Session
from qdit.rounding.reconstruction.targets import Targets, Task
from qdit.rounding.reconstruction.units import Unit
from qdit.runs.setup import Setup, assemble
from qdit.transform import Trial, rewritten

LEARN, JUDGE = 1000, 2000


class Kept:
    """The tasks of single blocks, behind full precision, in the place of `Targets`."""

    def __init__(self, fit: Fit, parts: list[Segment], units: dict[str, Unit], data: CalibrationData) -> None:
        self.model, self.tasks = fit.model, {}
        for name, unit in units.items():
            targets = Targets(fit.model, data, parts)  # for each: it writes over what it has passed
            for part in parts[: parts.index(unit.segment)]:
                targets.advance(part, {})
            self.tasks[name] = targets.task(unit, {})

    def task(self, unit: Unit, layers: Mapping[str, nn.Module]) -> Task:
        return self.tasks[unit.name]

    def installed(self, part: Segment, layers: Mapping[str, nn.Module]) -> Any:
        return replaced(self.model.denoiser, layers)


class Bench:
    """A fit of which single blocks are reconstructed in one way after the other."""

    def __init__(self, fit: Fit, learn: CalibrationData, judge: CalibrationData, blocks: list[int]) -> None:
        self.fit = fit
        session = self.session(AdaRound(iterations=0))
        wanted = [part.name for part in session.parts if part.block is not None]
        names = {wanted[number] for number in blocks}
        units = [unit for group in session.units for unit in group if unit.name in names]
        self.units = {unit.name: unit for unit in units}
        self.learn, self.judge = (Kept(fit, session.parts, self.units, data) for data in (learn, judge))
        sites = [site for unit in units for site in unit.sites]
        fit.searched |= {site.name: fit.grid(site) for site in sites}
        self.nearest = {s.name: Rounded.of(fit.weight_of(s), fit.grid(s), fit.weight_spec(s)) for s in sites}
        self.start = {
            name: {path: quantizer.scale.clone() for path, quantizer in session.static(session.layers(unit)).items()}
            for name, unit in self.units.items()
        }

    def session(self, how: AdaRound) -> Session:
        return Session(self.fit, how, lagging=False, fisher=False)

    def measure(self, how: AdaRound) -> list[float]:
        """The blocks' signal over error on points that they did not learn from, in dB."""
        found = []
        for name, unit in self.units.items():
            session = self.session(how)
            if how.iterations:
                session.learn(unit, self.learn, tqdm(disable=True))  # pyright: ignore[reportArgumentType]
            else:
                session.weights |= self.nearest
            layers, task = session.layers(unit), self.judge.task(unit, {})
            with replaced(self.fit.model.denoiser, layers):
                spent = error(task, 32)
            found.append(10 * log10(TOKENS * float(task.target.float().square().mean()) / spent))
            for path, quantizer in session.static(layers).items():
                quantizer.scale.copy_(self.start[name][path])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantizer", default="ptq4dit")
    parser.add_argument("--bits", nargs="+", default=["w4a4", "w6a6", "w4a8", "w8a8"])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.03, 0.06, 0.12])
    parser.add_argument("--absolute", type=float, nargs="*", default=[1e-4])
    parser.add_argument("--iterations", type=int, nargs="+", default=[500])
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 4, 8])
    parser.add_argument("words", nargs="*", help="more of the config")
    chosen = parser.parse_args()
    kinds = [("absolute", rate) for rate in chosen.absolute] + [("relative", rate) for rate in chosen.rates]
    ways = {"nearest": AdaRound(iterations=0)}
    for n in chosen.iterations:
        ways |= {
            f"{n} x {kind} {rate:g}": AdaRound(iterations=n, step_rate=rate, step_unit=kind) for kind, rate in kinds
        }
    seen: list[CalibrationData] = []
    for bits in chosen.bits:
        words = [f"quantizer={chosen.quantizer}", f"bits={bits}", "dry=true", *chosen.words]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            parts = assemble(resolved(compose("config", words)))
        seen = seen or [drawn(parts, seed) for seed in (LEARN, JUDGE)]
        for name, found in swept(parts, *seen, ways, chosen.blocks):
            figures = "  ".join(f"{value:6.2f}" for value in found)
            print(f"{bits}  {name:26} {figures}  mean {sum(found) / len(found):6.2f} dB", flush=True)


def drawn(parts: Setup, seed: int) -> CalibrationData:
    """The points of the recipe's calibration with another seed."""
    assert parts.recipe is not None
    return replace(parts.recipe.calibration, seed=seed).collect(parts.model, parts.sampler, parts.dataset, 0)


@torch.no_grad()
def swept(
    parts: Setup, learn: CalibrationData, judge: CalibrationData, ways: dict[str, AdaRound], blocks: list[int]
) -> Iterator[tuple[str, list[float]]]:
    model, recipe = parts.model, parts.recipe
    assert recipe is not None
    sites = recipe.scope.select(model.sites())
    rewrite = rewritten(recipe.transform, model, sites, lambda: learn, Trial(recipe), None)
    with rewrite.installed(model):
        policy = recipe.completed(recipe.plan(model.sites()), model)
        bench = Bench(Fit(model, recipe, policy, lambda: learn, None, rewrite), learn, judge, blocks)
        for name, how in ways.items():
            yield name, bench.measure(how)


if __name__ == "__main__":
    main()
