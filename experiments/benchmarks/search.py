"""What a search candidate costs: its time against sampling the same images with a fixed model, in one process.

    python experiments/benchmarks/search.py [--samples 16] [--repeats 5] [OVERRIDE ...]

The budget is 1.15 times: a candidate is put together from layers that exist, sampled, scored and written to the ledger.
Runs alternate and the fastest of each counts: machines are noisy, so only the ratio means anything. The first column of
seconds is what the weights of all group sizes took, once a search.
"""

import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from tabulate import tabulate

from qdit.assets import CONF
from qdit.config import resolved
from qdit.runs.setup import assemble
from qdit.search.base import Bench
from qdit.search.scored import Scorer
from qdit.tracking import NoTracker

OBJECTIVES = ("sqnr", "latent_mse")


def compare(objective: str, samples: int, repeats: int, overrides: list[str], folder: Path) -> list[str]:
    """A row of the table: seconds of the weights, of sampling, of a candidate, and the ratio of the last two."""
    words = ["quantizer=q_dit", "search=evolution", f"search/objective={objective}", "eval=none", "sampler.steps=5"]
    words += ["rounding=nearest", f"search.objective.num_samples={samples}", f"search.objective.batch_size={samples}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parts = assemble(resolved(compose("config", [*words, *overrides])))
    recipe, model = parts.recipe, parts.model
    space = recipe.search.space(recipe, model.sites())
    table = recipe.search.budget.table(space)
    bench = Bench(model, recipe, space, table, lambda: None, parts.setting(0, folder / objective, NoTracker()))
    start = perf_counter()
    for size in recipe.search.group_sizes:
        bench.variants.of_size(size)
    made = perf_counter() - start
    scorer, rng = Scorer(recipe.search, bench), np.random.default_rng(0)
    fixed = bench.variants.assembled(space, table.draw(rng))
    scorer.judge(fixed)  # the full-precision samples, once a search
    times = []
    for _ in range(repeats):
        start = perf_counter()
        with fixed.installed(model):
            scorer.judge.draw()
        sampling = perf_counter() - start
        start = perf_counter()
        with torch.no_grad():
            scorer(table.draw(rng))
        times.append((sampling, perf_counter() - start))
    sampling, candidate = map(min, zip(*times, strict=True))
    return [objective, f"{made:.2f}", f"{sampling:.3f}", f"{candidate:.3f}", f"{candidate / sampling:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="of the config, such as model.path=FOLDER")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(name, args.samples, args.repeats, args.overrides, Path(folder)) for name in OBJECTIVES]
    print(f"{args.samples} images of 5 steps, {torch.get_num_threads()} threads")
    print(tabulate(rows, ["objective", "all weights (s)", "sampling (s)", "candidate (s)", "ratio"], "github"))


if __name__ == "__main__":
    main()
