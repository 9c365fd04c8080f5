"""Which parts help qdit's hybrids: chosen on some samples, judged on others by paired differences.

    qdit grid=hybrid_parts eval=paired
    qdit grid=hybrid_parts eval=paired quantizer=qdit_w4a4 bits=w4a4
    python experiments/comparison/hybrid_parts.py [--runs-dir runs] [--study hybrid_parts] [--metric sqnr]

Each row of the study is compared with the row that lacks its part, sample by sample. A part is chosen if it gains on
the noise of `--choose` (seed 1); it is to be adopted if, on the noise of `--judge` (seed 0), what was chosen gains more
than two standard errors. Rows that are not made yet, or have other samples than their partner, are —.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from qdit.tables import load_results
from qdit.tables.differences import difference

BASES = {  # the row that lacks the part
    "2_bias": "1_none",
    "3_channel_shift": "1_none",
    "5_renormalised": "4_probabilities",
    "7_drop": "6_adaround",
}
BEYOND = 2.0
"""Standard errors that a gain must be above."""

Runs = Sequence[Mapping[str, Any]]


class Verdict(NamedTuple):
    """What a part is worth to a hybrid: mean and standard error of the gain; None where rows are not there."""

    bits: str
    part: str
    chosen_by: tuple[float, float] | None
    judged_by: tuple[float, float] | None

    @property
    def chosen(self) -> bool:
        """Whether it gains on the samples that choose."""
        return self.chosen_by is not None and self.chosen_by[0] > 0

    @property
    def adopted(self) -> bool | None:
        """Whether what was chosen gains on others, beyond their error; None as long as that is not known."""
        if self.chosen_by is None or (self.chosen and self.judged_by is None):
            return None
        return self.chosen and self.judged_by is not None and self.judged_by[0] > BEYOND * self.judged_by[1]


def gain(runs: Runs, part: str, seed: int, metric: str) -> tuple[float, float] | None:
    """The mean gain of a part's row over its base's on the samples of a seed, with its standard error.

    Raises:
        SystemExit: neither more nor less of the metric is better.
    """
    with_it, without = (
        [run for run in runs if run["quantizer"] == name and run["seed"] == seed] for name in (part, BASES[part])
    )
    found = difference(with_it, without, metric) if with_it and without else None
    if found is None:
        return None
    higher = with_it[0].get(f"{metric}_higher_is_better")
    if higher is None:
        raise SystemExit(f"{metric} has no better side: neither more nor less of it is a gain")
    return (found[0] if higher else -found[0]), found[1]


def verdicts(runs: Runs, choose: int, judge: int, metric: str) -> list[Verdict]:
    """One for each part and each bits that have runs."""
    done = [run for run in runs if run["status"] == "done"]
    found = []
    for bits in sorted({run["bits"] for run in done if run["quantizer"] in {*BASES, *BASES.values()}}):
        own = [run for run in done if run["bits"] == bits]
        found += [Verdict(bits, part, *(gain(own, part, seed, metric) for seed in (choose, judge))) for part in BASES]
    return found


def table(found: Sequence[Verdict], metric: str, choose: int, judge: int) -> str:
    """Markdown."""
    shown = lambda gain: "—" if gain is None else f"{gain[0]:+.2f} ± {gain[1]:.2f}"  # noqa: E731
    word = {None: "—", True: "adopt", False: "no"}
    rows = [(v.bits, v.part, BASES[v.part], shown(v.chosen_by), shown(v.judged_by), word[v.adopted]) for v in found]
    headers = ["bits", "row", "against", f"{metric}, seed {choose}", f"{metric}, seed {judge}", "verdict"]
    return tabulate(rows, headers, "github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--study", default="hybrid_parts")
    parser.add_argument("--metric", default="sqnr")
    parser.add_argument("--choose", type=int, default=1, help="seed of the samples that choose (default: 1)")
    parser.add_argument("--judge", type=int, default=0, help="seed of the samples that judge (default: 0)")
    args = parser.parse_args()
    runs = [dict(row) for row in load_results(args.runs_dir, args.study).to_dict("records")]
    print(table(verdicts(runs, args.choose, args.judge, args.metric), args.metric, args.choose, args.judge))


if __name__ == "__main__":
    main()
