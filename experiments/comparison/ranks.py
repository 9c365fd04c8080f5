"""Do recipes rank alike? Spearman's rank correlations between studies, or metrics of one, with bootstrap intervals.

    python experiments/comparison/ranks.py methods:sqnr methods_text:sqnr methods_video:sqnr [--bits w4a4]
    python experiments/comparison/ranks.py methods:sqnr methods:fid_lite0_delta --bits w4a8

Each word is a study and one of its metrics. Of each pair of words the recipes that both have at the same bits are
ranked by their means; a metric that is better when lower is turned round, so that 1 means the same order. The 95 %
interval is of 2,000 draws of the samples of both, with replacement, the same ones for all recipes of a study; recipes
are not drawn, so that it says nothing of others. A metric of whole sets has no values of single samples, so that a pair
with one has no interval.
"""

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tabulate import tabulate

from qdit.tables import load_results
from qdit.tables.differences import values

DRAWS = 2000


class Side(NamedTuple):
    """One study at some bits, by a metric: means by recipe, and values of single samples [recipes, n] where kept."""

    means: pd.Series
    samples: pd.DataFrame | None


def side(frame: pd.DataFrame, metric: str, bits: str, seed: int = 0) -> Side:
    """The quantized runs of a seed of the noise and the first calibration set, with higher values for better ones.

    Raises:
        SystemExit: a recipe has several, or they were made under several protocols.
    """
    runs = frame[(frame.status == "done") & (frame.bits == bits) & (frame.seed == seed)]
    if "calibration.seed" in runs:
        runs = runs[runs["calibration.seed"].fillna(0) == 0]
    rows: list[dict[str, Any]] = [{str(key): value for key, value in row.items()} for row in runs.to_dict("records")]
    rows = [row for row in rows if pd.notna(row.get(metric))]
    protocols = sorted({str(row["protocol_id"]) for row in rows})
    if len(rows) > len({row["quantizer"] for row in rows}) or len(protocols) > 1:
        raise SystemExit(
            f"{metric} at {bits}: a recipe has several runs of seed {seed}, or protocols differ: {protocols}"
        )
    sign = -1.0 if any(row.get(f"{metric.removesuffix('_delta')}_higher_is_better") is False for row in rows) else 1.0
    means = pd.Series({row["quantizer"]: sign * float(row[metric]) for row in rows}, dtype=float)
    found = {row["quantizer"]: values(row, metric) for row in rows}
    kept = bool(found) and all(each is not None for each in found.values())
    return Side(means, sign * pd.DataFrame(found).T if kept else None)


def rank_correlation(one: pd.Series, other: pd.Series) -> float:
    """Spearman's, of the recipes in both."""
    return float(one.rank().corr(other.rank()))


def interval(one: Side, other: Side, common: Sequence[str], draws: int) -> tuple[float, float] | None:
    """The middle 95 % of the correlations of draws; None where a side keeps no values of single samples."""
    if one.samples is None or other.samples is None:
        return None
    random = np.random.default_rng(0)
    found = [
        rank_correlation(*(drawn(each.samples.loc[list(common)], random) for each in (one, other)))
        for _ in range(draws)
    ]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def drawn(samples: pd.DataFrame, random: np.random.Generator) -> pd.Series:
    """Means by recipe over as many samples, drawn with replacement."""
    chosen: NDArray[np.int64] = random.integers(samples.shape[1], size=samples.shape[1])
    return pd.Series(samples.to_numpy()[:, chosen].mean(1), samples.index)


def table(words: Sequence[str], sides: dict[str, dict[str, Side]], draws: int) -> str:
    """Markdown: a row for each bits and pair of words."""
    rows = []
    for bits, found in sides.items():
        for one, other in combinations(words, 2):
            common = [name for name in found[one].means.index if name in found[other].means.index]
            if len(common) < 3:
                rows.append([bits, one, other, len(common), "—", "—"])
                continue
            rho = rank_correlation(*(found[word].means[common] for word in (one, other)))
            between = interval(found[one], found[other], common, draws)
            shown = "—" if between is None else f"{between[0]:.2f} to {between[1]:.2f}"
            rows.append([bits, one, other, len(common), f"{rho:.2f}", shown])
    return tabulate(rows, ["bits", "one", "other", "recipes", "Spearman's ρ", "95 %"], "github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="STUDY:METRIC")
    parser.add_argument("--runs-dir", type=Path, default=Path("experiments/comparison/results"))
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w4a8", "w4a4"])
    parser.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args()
    pairs = {word: word.partition(":")[::2] for word in args.words}
    frames = {study: load_results(args.runs_dir, study) for study, _ in pairs.values()}
    sides = {
        bits: {word: side(frames[study], metric, bits, args.seed) for word, (study, metric) in pairs.items()}
        for bits in args.bits
    }
    print(table(args.words, sides, args.draws))


if __name__ == "__main__":
    main()
