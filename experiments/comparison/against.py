"""One row of a study against another, sample by sample: which is better, in how many metrics?

    python experiments/comparison/against.py formats qdit_w4a4@int4_g16 svdquant_gptq@int4_g64 [more pairs …]
    python experiments/comparison/against.py methods seed_parts:rtn_bias@w4a8 rtn@w4a8

Words are a study, then pairs of rows as quantizer@bits; a row of another study has its name in front. Of each pair the
mean difference of a metric over samples of the same noise is shown with its 95 % interval, of 1.96 standard errors, and
better where that leaves 0 out on the good side; and what both cost, a weight and an input of the quantized layers.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from qdit.tables import load_results
from qdit.tables.differences import difference

METRICS = ("sqnr", "latent_mse", "psnr", "ssim", "feature_distance_lite0")
WIDE = 1.96
Row = Mapping[str, Any]
read = cache(load_results)
"""Each study once, however many rows of it are named."""


def row_of(runs_dir: Path, study: str, word: str, seed: int = 0) -> Row:
    """The finished run of a word, of a seed of the noise and the first calibration set.

    Raises:
        SystemExit: there is none, or there are several.
    """
    study, word = word.split(":", 1) if ":" in word else (study, word)
    frame = read(runs_dir, study)
    quantizer, _, bits = word.partition("@")
    found = frame[(frame.quantizer == quantizer) & (frame.bits == bits) & (frame.status == "done")]
    found = found[found.seed == seed]
    if "calibration.seed" in found:
        found = found[found["calibration.seed"].fillna(0) == 0]
    if found.empty:
        raise SystemExit(
            f"{word}: no such row of seed {seed} in {study}; there are "
            f"{', '.join(sorted(set(frame.quantizer + '@' + frame.bits)))}"
        )
    if len(found) > 1:
        raise SystemExit(f"{word}: {len(found)} rows of seed {seed} in {study}: {', '.join(map(str, found.run_id))}")
    return {str(key): value for key, value in found.iloc[0].items()}


def verdict(one: Row, other: Row, metric: str) -> tuple[str, bool]:
    """The difference as it is shown, and whether the first row is better beyond the interval; — without values."""
    found = difference([one], [other], metric)
    if found is None:
        return "—", False
    mean, half = found[0], WIDE * found[1]
    sign = 1 if one[f"{metric}_higher_is_better"] else -1  # of paired metrics, all of which have a direction
    better = sign * mean > half
    return f"{mean:+.3g} ± {half:.2g}" + " *" * better, better


def line(one: Row, other: Row, metrics: Sequence[str]) -> list[str]:
    """Cells of a pair.

    Raises:
        SystemExit: they were made under different protocols, so that sample i of one is not sample i of the other.
    """
    if one["protocol_id"] != other["protocol_id"]:
        known = " and ".join(f"{row['quantizer']}@{row['bits']} ({row['protocol_id']})" for row in (one, other))
        raise SystemExit(f"{known} were made under different protocols, and have no samples in common")
    bits = [[row["weight_bits_quantized"], row["input_bits"]] for row in (one, other)]
    costs = [", ".join("—" if pd.isna(each) else f"{each:.2f}" for each in of) for of in bits]
    found = [verdict(one, other, metric) for metric in metrics]
    names = [f"{row['quantizer']} {row['bits']}" for row in (one, other)]
    wins = sum(better for _, better in found)
    return [names[0], costs[0], names[1], costs[1], *(shown for shown, _ in found), f"{wins} of {len(found)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("rows", nargs="+", metavar="[STUDY:]QUANTIZER@BITS", help="an even number of them")
    parser.add_argument("--runs-dir", type=Path, default=Path("experiments/comparison/results"))
    parser.add_argument("--metrics", nargs="+", default=METRICS)
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    args = parser.parse_args()
    if len(args.rows) % 2:
        parser.error("rows come in pairs")
    rows = [row_of(args.runs_dir, args.study, word, args.seed) for word in args.rows]
    lines = [line(one, other, args.metrics) for one, other in zip(rows[::2], rows[1::2], strict=True)]
    heads = ["row", "bits W, A", "against", "bits W, A", *args.metrics, "better"]
    print(tabulate(lines, heads, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
