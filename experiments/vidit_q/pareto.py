"""Draw mean bits against quality: uniform, greedy and integer-programme allocations.

    python experiments/vidit_q/pareto.py [--runs-dir runs] [--study vidit_q_pareto]

Reads the records of `qdit grid=vidit_q_pareto`; writes pareto.png beside this file. Bars are one standard error.
"""

import argparse
from pathlib import Path

from qdit.plots.style import look, panels_of, save
from qdit.tables import load_results

LABELS = {"uniform": "the same bits everywhere", "greedy": "greedy (the paper's list)", "milp": "integer programme"}
PANELS = {"sqnr": "SQNR of the final latent (dB)", "fid_lite0": "fid_lite0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--study", default="vidit_q_pareto")
    arguments = parser.parse_args()
    runs = load_results(arguments.runs_dir, arguments.study)
    runs["used"] = runs.weight_bits_used.fillna(runs.weight_bits_quantized)  # stored are more
    kinds = runs.quantizer.str.split("_").str[0]
    figure, panels = panels_of(len(PANELS), 9.0, 3.4, sharey=False)
    for axes, (metric, label) in zip(panels, PANELS.items(), strict=True):
        for number, (kind, text) in enumerate(LABELS.items()):
            line = runs[kinds == kind].sort_values("used")
            colour, marker = look(number)
            about = {"yerr": line[f"{metric}_stderr"], "color": colour, "marker": marker, "label": text}
            axes.errorbar(line.used, line[metric], **about)
        axes.set(xlabel="mean bits a weight that a step uses, without scales", ylabel=label)
    panels[1].axhline(runs[kinds == "fp"].fid_lite0.iloc[0], color="#555555", linestyle="--", label="full precision")
    panels[1].legend(frameon=False)
    print(save(figure, Path(__file__).with_name("pareto.png")))


if __name__ == "__main__":
    main()
