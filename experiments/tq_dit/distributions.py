"""Draw what attention probabilities and GELU's outputs are like, and which levels two grids of 6 bits give them.

    python experiments/tq_dit/distributions.py [--block 3] [--bits 6] [--out experiments/tq_dit/distributions.png]

One block of the embedded model in full precision, at 40 points of 4 guided trajectories. The uniform grids are those of
TQ-DiT's recipe without its two regions (`activation/regions=none attention/probabilities=unsigned`), the others its own
(MRQ), all of least squared error. Probabilities are drawn by their logarithm: it shows what both grids make 0. Prints
the shares and the squared errors that the figure names.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from qdit.activation import EqualGroups, SidedInputs, StaticActivation
from qdit.assets import CONF
from qdit.attention import TwoRegionProbabilities, UnsignedProbabilities
from qdit.calibration.observers import input_values, operand_values
from qdit.config import resolved
from qdit.nn.clock import Clock
from qdit.plots.style import COLOURS, save
from qdit.quant.ranges import MSE, MinMax
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import ALL
from qdit.runs.setup import assemble

WORDS = ["quantizer=tq_dit", "calibration.num_samples=40", "device=cpu"]
STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
SMALLEST = 2.0**-15  # of probabilities; those below stand at the left end
HIDDEN = 0.0005  # of what GELU gives, the largest
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 9}
NAMES = ("uniform", "two regions")


def collected(block: int) -> tuple[Tensor, Tensor]:
    """A sample of a block's probabilities, and one of what GELU gives, [n] each."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolved(compose("config", WORDS))
    parts = assemble(config)
    assert parts.recipe is not None
    with torch.no_grad():
        data = parts.recipe.calibration.collect(parts.model, parts.sampler, parts.dataset, config["seed"])
        site = next(s for s in parts.model.sites() if (s.block, s.role) == (block, "ffn_down"))
        attention = next(a for a in parts.model.attentions() if a.block == block)
        behind = input_values(parts.model, [site], data)[site.name][0]
        name = attention.sites["probs"]
        return operand_values(parts.model, [attention], data, {name: ALL})[name][0], behind


def probability_grids(values: Tensor, bits: int) -> dict[str, nn.Module]:
    """What rounds probabilities."""
    spec = QuantSpec(bits=bits, granularity="tensor", grid="unsigned", dynamic=False)
    parts = UnsignedProbabilities(range=MinMax()), TwoRegionProbabilities(kinds=["two_region"])
    return {n: Rounder(p.book(bits), p.numbers(values, spec)) for n, p in zip(NAMES, parts, strict=True)}


def gelu_grids(values: Tensor, bits: int) -> dict[str, nn.Module]:
    """What rounds GELU's outputs."""
    sided = SidedInputs(roles=["ffn_down"])
    part = StaticActivation(granularity="tensor", grid="symmetric_full", range=MSE(), regions=sided)
    specs = part.spec(bits), sided.at("ffn_down", part.spec(bits), EqualGroups())
    assert specs[1] is not None
    return {n: part.quantizer(s, [values], ALL, Clock()) for n, s in zip(NAMES, specs, strict=True) if s is not None}


class Rounder(nn.Module):
    """A code-book with its numbers."""

    def __init__(self, book, numbers: Tensor) -> None:
        super().__init__()
        self.book, self.numbers = book, numbers

    def forward(self, x: Tensor) -> Tensor:
        return self.book(x, *self.numbers)


def levels(grid: nn.Module, low: float, high: float) -> np.ndarray:
    """All that a grid gives to values from `low` to `high`."""
    found = grid(torch.linspace(low, high, 400_001)).unique().numpy()
    return found[np.diff(found, prepend=-np.inf) > 1e-6]


def rug(axes: Axes, rows: dict[str, np.ndarray], shares: dict[str, str]) -> None:
    """Levels as strokes, a row a grid, with what is said about it to the right."""
    for row, (name, places) in enumerate(rows.items()):
        axes.vlines(places, -row - 0.36, -row + 0.36, color=COLOURS[row], linewidth=1.0)
        axes.text(
            1.015, -row, shares[name], transform=axes.get_yaxis_transform(), va="center", color=COLOURS[row], fontsize=8
        )
    axes.set_yticks([-row for row in range(len(rows))], list(rows), fontsize=8)
    for label, colour in zip(axes.get_yticklabels(), COLOURS, strict=False):
        label.set_color(colour)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-len(rows) + 0.4, 0.6)


def described(grids: dict[str, nn.Module], values: Tensor, what: str) -> dict[str, str]:
    """The share of values other than 0 that become 0, and the signal-to-noise ratio, of each grid."""
    said: dict[str, str] = {}
    for name, grid in grids.items():
        rounded = grid(values)
        lost = float((rounded == 0).float().mean())
        ratio = 10 * torch.log10(values.double().square().mean() / (rounded - values).double().square().mean())
        said[name] = f"{lost:.0%} become 0\n{float(ratio):.1f} dB"
        print(f"{what}, {name}: {lost:.1%} become 0, SQNR {float(ratio):.2f} dB")
    return said


def histogram(axes: Axes, values: np.ndarray, edges: np.ndarray) -> None:
    """Counts on a logarithmic scale."""
    axes.hist(values, edges.tolist(), log=True, color="#9aa5b1", edgecolor="white", linewidth=0.2)
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("values in a bin")


def draw(probabilities: Tensor, behind: Tensor, block: int, bits: int) -> Figure:
    """Both distributions above the levels of both grids."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 3.7), dpi=130, facecolor="white", layout="constrained")
        plots = figure.subplots(2, 2, sharex="col", height_ratios=[3, 1])
    tops, rugs = plots
    grids = probability_grids(probabilities, bits)
    histogram(tops[0], probabilities.clamp(min=SMALLEST).numpy(), np.geomspace(SMALLEST, 1, 76))
    found = {name: levels(grid, 0, 1) for name, grid in grids.items()}
    first = float(found["uniform"][1])
    rug(rugs[0], {n: p[p > 0] for n, p in found.items()}, described(grids, probabilities, "probabilities"))
    rugs[0].set_xscale("log", base=2)
    rugs[0].set_xlim(SMALLEST, 1.15)
    rugs[0].set_xlabel(f"probability, logarithmic (those below 2⁻¹⁵ at the left end); levels of {bits} bits but 0")
    below = float((probabilities < first).float().mean())
    tops[0].set_title(f"Behind softmax, block {block}: {below:.0%} are below the first uniform level", **TITLE)
    grids, high = gelu_grids(behind, bits), float(behind.quantile(1 - HIDDEN))
    histogram(tops[1], behind.numpy(), np.linspace(-0.175, high, 90))
    found = {name: levels(grid, float(behind.min()) - 1, float(behind.max())) for name, grid in grids.items()}
    rug(rugs[1], found, described(grids, behind, "GELU"))
    rugs[1].set_xlim(-0.6, high)
    rugs[1].set_xlabel(f"value (the largest {HIDDEN:.2%} are not shown); levels of {bits} bits")
    negative = float((behind < 0).float().mean())
    tops[1].set_title(f"Behind GELU: {negative:.0%} are between -0.17 and 0", **TITLE)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, default=3)
    parser.add_argument("--bits", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("distributions.png"))
    args = parser.parse_args()
    print(save(draw(*collected(args.block), args.block, args.bits), args.out, dpi=130))


if __name__ == "__main__":
    main()
